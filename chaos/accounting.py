"""What a service says of itself when all is over: that every request it accepted has ended, once."""

import time
from collections.abc import Callable

import httpx

from chaos.scenario import Line
from harness.scraping import Samples, metric_value, parse_metrics
from harness.server import Server

WORKERS = 2
SETTLED = 60.0
"""Seconds in which requests that nobody waits for have to be gone."""


def read(url: str) -> Samples:
    """Its metrics now."""
    return parse_metrics(httpx.get(f"{url}/metrics", timeout=30).text)


def under_way(samples: Samples) -> int:
    """Requests that are accepted and have not ended; below 0 where some ended twice."""
    ended = sum(value for (name, _), value in samples.items() if name == "ended_total")
    return int(metric_value(samples, "accepted_total") - ended)


def settled(url: str, over: Callable[[Samples], bool]) -> Samples:
    """The metrics once it is `over`, or when it should have been."""
    until = time.monotonic() + SETTLED
    while not over(samples := read(url)) and time.monotonic() < until:
        time.sleep(0.1)
    return samples


def rows(samples: Samples) -> int:
    """Images that are accepted and have not ended, of workers that are there."""
    return int(metric_value(samples, "rows_in_flight"))


def replaced(server: Server) -> Line:
    """Whether all workers that ended have a successor, and nothing that was accepted is held for ever."""
    samples = settled(server.url, lambda samples: len(server.workers) == WORKERS and not rows(samples))
    deaths, missing = int(metric_value(samples, "worker_deaths_total")), WORKERS - len(server.workers)
    found = f"{under_way(samples)} accepted requests went with them; {rows(samples)} images in flight after it"
    return Line("workers ended and were replaced", deaths, missing + abs(rows(samples)), found)


def closed(url: str) -> Line:
    """Whether every accepted request ended exactly once, and no seat is taken, soon after the last caller has gone."""
    samples = settled(url, lambda samples: not (under_way(samples) or rows(samples)))
    broken = int(metric_value(samples, "engine_restarts_total"))
    ends = sorted(
        (dict(labels)["how"], int(value)) for (name, labels), value in samples.items() if name == "ended_total"
    )
    told = ", ".join(f"{count:,} {how}" for how, count in ends)
    found = f"{told}; {rows(samples)} images in flight after it; {broken} broken turns"
    lost = abs(under_way(samples)) + abs(rows(samples)) + broken
    return Line("accepted requests ended, each once", sum(count for _, count in ends), lost, found)
