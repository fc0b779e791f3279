"""OpenTelemetry traces: a span for each request, with child spans for the queue, the device and the encoding.

Needs the extra `tracing`. OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, set the destination.
"""

import time
from typing import TYPE_CHECKING

from service import VERSION
from service.telemetry.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Tracer:
    """Sends spans to `exporter`, by default the collector that the environment names, from a thread.

    Raises ValueError if OpenTelemetry is not installed.
    """

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ValueError(
                f"DRAWBRIDGE_TRACING needs OpenTelemetry ({error}): pip install '.[tracing]' in a checkout"
            ) from None
        self.trace, self.propagator = trace, TraceContextTextMapPropagator()
        resource = Resource.create({"service.name": "drawbridge", "service.version": VERSION})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("drawbridge", VERSION)

    def record_request(self, request: RequestContext) -> None:
        """Export the spans of a finished request, as children of its `traceparent` (W3C Trace Context)."""
        clock_offset = time.time() - request.finished_at

        def wall(seconds: float) -> int:
            return int(1e9 * (clock_offset + seconds))

        context = self.propagator.extract({"traceparent": request.traceparent})
        attributes: dict[str, str | int] = {
            "http.request.method": request.method,
            "http.route": request.route,
            "http.response.status_code": request.status,
            "drawbridge.request_id": request.id,
        }
        if request.model:
            attributes |= {"drawbridge.model": request.model, "drawbridge.digest": request.digest}
        if request.seed is not None:
            attributes["drawbridge.seed"] = str(request.seed)  # seeds can have more bits than span numbers
        if request.ticket is not None:
            attributes["drawbridge.images"] = len(request.ticket.images)
            attributes["drawbridge.batch"] = request.ticket.max_batch_seen
        span = self.tracer.start_span(
            f"{request.method} {request.route}",
            context,
            kind=self.trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=wall(request.started_at),
        )
        if request.status >= 500:
            span.set_status(self.trace.StatusCode.ERROR)
        parent = self.trace.set_span_in_context(span)
        for name, started_at, seconds in request.spans():
            self.tracer.start_span(name, parent, start_time=wall(started_at)).end(wall(started_at + seconds))
        span.end(wall(request.finished_at))

    def close(self) -> None:
        """Send the remaining spans."""
        self.provider.shutdown()
