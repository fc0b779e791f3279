"""Prometheus metrics, in base units: seconds, bytes and counts.

If the service runs several processes, PROMETHEUS_MULTIPROC_DIR names the directory that all of them count in, and every
process renders the metrics of all.
"""

import os
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from service.engine.catalog import Model
from service.engine.engine import EngineObserver
from service.engine.request import Ticket
from service.telemetry.request_context import RequestContext

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STEP_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REFUSALS = (401, 408, 413, 429, 431, 503, 504)
"""Statuses of requests that are refused because of load, limits or authentication."""


M = TypeVar("M", bound=MetricWrapperBase)


class CachedChildren(dict[str | tuple[str, ...], M]):
    """A metric's children by label values. Looking a child up in the metric takes longer than counting."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self.metric = metric

    def __missing__(self, values: str | tuple[str, ...]) -> M:
        child = self[values] = self.metric.labels(*((values,) if isinstance(values, str) else values))
        return child


class Metrics(EngineObserver):
    """All metrics. The engine reports its steps, the application its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = CachedChildren(self._counter("requests", "HTTP requests answered.", "route", "model", "code"))
        self.duration = CachedChildren(
            self._histogram("request_duration_seconds", "Time from a request to its response.", SECONDS, "route")
        )
        self.queue = CachedChildren(
            self._histogram("queue_wait_seconds", "Time from acceptance to the first device step.", SECONDS, "model")
        )
        self.step = CachedChildren(
            self._histogram("step_duration_seconds", "Time of one device step.", STEP_SECONDS, "model")
        )
        self.batch = CachedChildren(self._histogram("batch_rows", "Rows in a device step.", ROWS, "model"))
        self.padding = CachedChildren(self._counter("padding_rows", "Rows that pad a batch to a proven size.", "model"))
        self.images = CachedChildren(self._counter("images", "Images delivered.", "model"))
        self.accepted = self._counter("accepted", "Requests that the engine accepted.")
        self.ended = CachedChildren(self._counter("ended", "Accepted requests by outcome.", "how"))
        self.cancelled = CachedChildren(
            self._counter("cancelled", "Requests cancelled by a client disconnect, by stage.", "stage")
        )
        self.rejected = CachedChildren(self._counter("rejected", "Requests refused, by kind of problem.", "reason"))
        self.restarts = self._counter("engine_restarts", "Engine restarts after a step failed unexpectedly.")
        self.replayed = self._counter("replayed", "Requests sent again after the death of an engine process.")
        self.reloads = CachedChildren(self._counter("weights_reloads", "Reloads of weights by outcome.", "outcome"))
        self.in_flight = self._gauge("rows_in_flight", "Images queued or in progress.")
        self.memory = CachedChildren(self._gauge("memory_bytes", "Memory in use by processes and devices.", "kind"))

    def on_batch(self, model: str, rows: int, size: int, seconds: float) -> None:
        name = model_name(model)
        self.step[name].observe(seconds)
        self.batch[name].observe(rows)
        if size > rows:
            self.padding[name].inc(size - rows)

    def on_step(self, accepted: int, ended: list[Ticket], outstanding: int) -> None:
        self.accepted.inc(accepted)
        self.in_flight.set(outstanding)
        images = Counts[str]()
        for ticket in ended:
            name = model_name(ticket.request.model)
            if ticket.started_at is not None:
                self.queue[name].observe(ticket.started_at - ticket.accepted_at)
            if ticket.outcome == "delivered":
                images[name] += len(ticket.images)
            elif ticket.outcome == "cancelled":
                self.cancelled["waiting" if ticket.started_at is None else "drawing"].inc()
        for outcome, count in Counts(ticket.outcome for ticket in ended).items():
            self.ended[outcome].inc(count)
        for name, count in images.items():
            self.images[name].inc(count)

    def on_recovery(self) -> None:
        self.restarts.inc()

    def record_requests(self, contexts: list[RequestContext]) -> None:
        """Count requests that are finished."""
        for labels, count in Counts(
            (context.route, context.model, str(context.status)) for context in contexts
        ).items():
            self.requests[labels].inc(count)
        for context in contexts:
            self.duration[context.route].observe(context.finished_at - context.started_at)
            if context.status in REFUSALS and context.problem:
                self.rejected[context.problem].inc()

    def sample_memory(self, device: torch.device) -> None:
        """Sample the memory in use."""
        if (statm := Path("/proc/self/statm")).exists():
            self.memory["resident"].set(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        if device.type == "cuda":
            self.memory["device"].set(torch.cuda.memory_reserved(device))

    def render(self, served: list[Model]) -> bytes:
        """All metrics in Prometheus text format, with the weights in `served`."""
        registry = self._all_processes()
        registry.register(_ModelInfoCollector(served))
        return generate_latest(registry)

    def model_totals(self) -> dict[str, dict[str, float]]:
        """The sums of all processes' samples by model and name; `requests_total` has a suffix: `_2xx`, `_4xx`, ..."""
        totals = defaultdict[str, dict[str, float]](lambda: defaultdict(float))
        for metric in self._all_processes().collect():
            for sample in metric.samples:
                if "model" in sample.labels:
                    suffix = f"_{sample.labels['code'][0]}xx" if "code" in sample.labels else ""
                    totals[sample.labels["model"]][sample.name.removeprefix("drawbridge_") + suffix] += sample.value
        return totals

    def _all_processes(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self.registry)
        return registry

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"drawbridge_{name}", help_, labels, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"drawbridge_{name}", help_, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"drawbridge_{name}", help_, labels, registry=self.registry, multiprocess_mode="livesum")


class _ModelInfoCollector(Collector):
    """Reports the weights that are served at the time of a scrape."""

    def __init__(self, models: list[Model]) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("drawbridge_model_info", "Weights that are served.", labels=("model", "digest"))
        for model in self.models:
            family.add_metric((model.name, model.digest), 1)
        yield family


def model_name(key: str) -> str:
    """The model's name without its version, which bounds the label's values."""
    return key.partition("@")[0]
