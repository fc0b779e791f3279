"""Metrics for Prometheus, in base units: seconds, bytes, and plain numbers.

Where the service is several processes, PROMETHEUS_MULTIPROC_DIR names the directory that they all count in, and
whichever is asked answers for all of them.
"""

import os
from collections import Counter as Counts
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
"""Statuses of requests that are turned away for what goes on here, or for who asks."""


M = TypeVar("M", bound=MetricWrapperBase)


class CachedChildren(dict[str | tuple[str, ...], M]):
    """A metric's children by the values of their labels: asking it for one each time takes longer than counting."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self.metric = metric

    def __missing__(self, values: str | tuple[str, ...]) -> M:
        child = self[values] = self.metric.labels(*((values,) if isinstance(values, str) else values))
        return child


class Metrics(EngineObserver):
    """What is counted, by the engine as it goes and by the application for each request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = CachedChildren(self._counter("requests", "Requests answered.", "route", "model", "code"))
        self.duration = CachedChildren(
            self._histogram("request_duration_seconds", "From a request to its answer.", SECONDS, "route")
        )
        self.queue = CachedChildren(
            self._histogram("queue_wait_seconds", "From acceptance to the first step.", SECONDS, "model")
        )
        self.step = CachedChildren(
            self._histogram("step_duration_seconds", "Of one step on the device.", STEP_SECONDS, "model")
        )
        self.batch = CachedChildren(self._histogram("batch_rows", "Rows of a step.", ROWS, "model"))
        self.padding = CachedChildren(self._counter("padding_rows", "Rows that only filled a batch up.", "model"))
        self.images = CachedChildren(self._counter("images", "Images drawn and delivered.", "model"))
        self.taken = self._counter("accepted", "Requests that the engine accepted.")
        self.over = CachedChildren(
            self._counter("ended", "Requests that the engine accepted, by how they ended.", "how")
        )
        self.cancelled = CachedChildren(
            self._counter("cancelled", "Requests whose caller hung up, by how far they were.", "stage")
        )
        self.rejected = CachedChildren(self._counter("rejected", "Requests refused, by what was wrong.", "reason"))
        self.restarts = self._counter("engine_restarts", "Turns of the engine that broke.")
        self.reloads = CachedChildren(
            self._counter("weights_reloads", "Times that new weights were looked for, by how it went.", "outcome")
        )
        self.in_flight = self._gauge("rows_in_flight", "Images accepted and not ended.")
        self.memory = CachedChildren(
            self._gauge("memory_bytes", "Memory in use, of the processes and of their devices.", "kind")
        )

    def stepped(self, model: str, rows: int, places: int, seconds: float) -> None:
        name = model_name(model)
        self.step[name].observe(seconds)
        self.batch[name].observe(rows)
        if places > rows:
            self.padding[name].inc(places - rows)

    def turned(self, came: int, ended: list[Ticket], outstanding: int) -> None:
        self.taken.inc(came)
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
        for how, count in Counts(ticket.outcome for ticket in ended).items():
            self.over[how].inc(count)
        for name, count in images.items():
            self.images[name].inc(count)

    def recovered(self) -> None:
        self.restarts.inc()

    def record_requests(self, calls: list[RequestContext]) -> None:
        """Requests have their answers, or nobody waits for them any more."""
        for said, count in Counts((call.route, call.model, str(call.status)) for call in calls).items():
            self.requests[said].inc(count)
        for call in calls:
            self.duration[call.route].observe(call.finished_at - call.started_at)
            if call.status in REFUSALS and call.problem:
                self.rejected[call.problem].inc()

    def sample_memory(self, device: torch.device) -> None:
        """Look at what only shows when one looks."""
        if (statm := Path("/proc/self/statm")).exists():
            self.memory["resident"].set(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        if device.type == "cuda":
            self.memory["device"].set(torch.cuda.memory_reserved(device))

    def render(self, served: list[Model]) -> bytes:
        """All of it, as Prometheus reads it, with the weights that are served now."""
        registry = CollectorRegistry()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self.registry)
        registry.register(_ModelInfoCollector(served))
        return generate_latest(registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"drawbridge_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"drawbridge_{name}", what, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"drawbridge_{name}", what, labels, registry=self.registry, multiprocess_mode="livesum")


class _ModelInfoCollector(Collector):
    """Which weights there are, known when one asks."""

    def __init__(self, models: list[Model]) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("drawbridge_model_info", "Weights that are served.", labels=("model", "digest"))
        for model in self.models:
            family.add_metric((model.name, model.digest), 1)
        yield family


def model_name(key: str) -> str:
    """The model's name, without its version: so many there are."""
    return key.partition("@")[0]
