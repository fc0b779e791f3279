"""Traces: a span for each request, and in it those of the queue, the device and the encoding (OpenTelemetry).

Needs the extra `tracing`. Where spans go is said by OpenTelemetry's own variables, as OTEL_EXPORTER_OTLP_ENDPOINT.
"""

import time
from typing import TYPE_CHECKING

from service import VERSION
from service.telemetry.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Tracer:
    """Tells `exporter` of calls, from a thread of its own; else the collector that the environment names.

    Raises ValueError where OpenTelemetry is not installed.
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
                f"DRAWBRIDGE_TRACING needs OpenTelemetry ({error}): pip install 'drawbridge[tracing]'"
            ) from None
        self.trace, self.propagator = trace, TraceContextTextMapPropagator()
        resource = Resource.create({"service.name": "drawbridge", "service.version": VERSION})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("drawbridge", VERSION)

    def record_request(self, call: RequestContext) -> None:
        """Tell of a call that is over, as a child of what its caller named in `traceparent` (W3C Trace Context)."""
        shift = time.time() - call.finished_at

        def wall(seconds: float) -> int:
            return int(1e9 * (shift + seconds))

        context = self.propagator.extract({"traceparent": call.traceparent})
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "http.route": call.route,
            "http.response.status_code": call.status,
            "drawbridge.request_id": call.id,
        }
        if call.model:
            attributes |= {"drawbridge.model": call.model, "drawbridge.digest": call.digest}
        if call.seed is not None:
            attributes["drawbridge.seed"] = str(call.seed)  # some need more bits than a span's numbers have
        if call.ticket is not None:
            attributes["drawbridge.images"] = len(call.ticket.images)
            attributes["drawbridge.batch"] = call.ticket.max_batch_seen
        whole = self.tracer.start_span(
            f"{call.method} {call.route}",
            context,
            kind=self.trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=wall(call.started_at),
        )
        if call.status >= 500:
            whole.set_status(self.trace.StatusCode.ERROR)
        inside = self.trace.set_span_in_context(whole)
        for name, begun, seconds in call.spans():
            self.tracer.start_span(name, inside, start_time=wall(begun)).end(wall(begun + seconds))
        whole.end(wall(call.finished_at))

    def close(self) -> None:
        """Send what is still here."""
        self.provider.shutdown()
