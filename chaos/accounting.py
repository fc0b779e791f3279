"""Checks of the service's own counters after a scenario: every accepted request ended exactly once."""

import time
from collections.abc import Callable

import httpx

from chaos.scenario import Line
from harness.scraping import Samples, metric_value, parse_metrics
from harness.server import Server

WORKERS = 2
SETTLE_SECONDS = 60.0
"""Time in which requests of disconnected clients must be gone."""


def read_metrics(url: str) -> Samples:
    """Return the current metrics of the service."""
    return parse_metrics(httpx.get(f"{url}/metrics", timeout=30).text)


def unfinished_requests(samples: Samples) -> int:
    """Return the number of requests accepted and not ended. It is negative if some ended twice."""
    ended = sum(value for (name, _), value in samples.items() if name == "ended_total")
    return int(metric_value(samples, "accepted_total") - ended)


def rows_in_flight(samples: Samples) -> int:
    """Return the number of images that the current workers have accepted and not ended."""
    return int(metric_value(samples, "rows_in_flight"))


def metrics_when(url: str, settled: Callable[[Samples], bool]) -> Samples:
    """Return the metrics once they are `settled`, or after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not settled(samples := read_metrics(url)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return samples


def workers_replaced(server: Server, processes: int = WORKERS) -> Line:
    """Check that every process that ended was replaced, and that no batch slot stays taken."""
    samples = metrics_when(server.url, lambda samples: len(server.workers) == processes and not rows_in_flight(samples))
    deaths, missing = int(metric_value(samples, "worker_deaths_total")), processes - len(server.workers)
    rows = rows_in_flight(samples)
    figures = f"{unfinished_requests(samples)} accepted requests ended with their worker; {rows} images in flight after"
    return Line("workers ended and were replaced", deaths, missing + abs(rows), figures)


def engines_replaced(server: Server, processes: int, poison_requests: int) -> Line:
    """Check that all `processes` are there, and that each accepted request of a dead engine was sent again or failed.

    An engine may have died before it accepted a request, so more may be sent again.
    """
    samples = metrics_when(server.url, lambda samples: len(server.workers) == processes and not rows_in_flight(samples))
    deaths, again = (int(metric_value(samples, name)) for name in ("engine_deaths_total", "replayed_total"))
    unfinished, rows = unfinished_requests(samples), rows_in_flight(samples)
    unexplained = max(0, unfinished - again - poison_requests, -unfinished)
    figures = (
        f"{unfinished} accepted requests ended with an engine process, {again} requests were sent to its successor"
    )
    lost = processes - len(server.workers) + abs(rows) + unexplained
    return Line("engine processes ended and were replaced", deaths, lost, f"{figures}; {rows} images in flight after")


def requests_accounted(url: str) -> Line:
    """Check that every accepted request ended exactly once, and that no batch slot stays taken."""
    samples = metrics_when(url, lambda samples: not (unfinished_requests(samples) or rows_in_flight(samples)))
    recoveries = int(metric_value(samples, "engine_restarts_total"))
    outcomes = sorted(
        (outcome, int(value))
        for (name, labels), value in samples.items()
        if name == "ended_total"
        for _, outcome in labels
    )
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes)
    rows = rows_in_flight(samples)
    figures = f"{counts}; {rows} images in flight after; {recoveries} failed engine steps"
    lost = abs(unfinished_requests(samples)) + abs(rows) + recoveries
    return Line("accepted requests ended exactly once", sum(count for _, count in outcomes), lost, figures)
