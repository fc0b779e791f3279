"""What a service says of itself when all is over: that every request it accepted has ended, once."""

import time

import httpx

from benchmarks.scraping import Samples, number, scraped
from benchmarks.server import Server
from trust.trial import Line

WORKERS = 2
SETTLED = 10.0
"""Seconds in which requests that nobody waits for have to be gone."""


def read(url: str) -> Samples:
    """Its metrics now."""
    return scraped(httpx.get(f"{url}/metrics", timeout=30).text)


def under_way(samples: Samples) -> int:
    """Requests that are accepted and have not ended; below 0 where some ended twice."""
    ended = sum(value for (name, _), value in samples.items() if name == "ended_total")
    return int(number(samples, "accepted_total") - ended)


def replaced(server: Server) -> Line:
    """Whether all workers that ended have a successor, and nothing that was accepted is held for ever."""
    until = time.monotonic() + SETTLED
    while True:
        samples, workers = read(server.url), len(server.workers)
        rows = int(number(samples, "rows_in_flight"))
        if (workers == WORKERS and not rows) or time.monotonic() >= until:
            break
        time.sleep(0.1)
    deaths, gone = int(number(samples, "worker_deaths_total")), under_way(samples)
    found = f"{gone} accepted requests went with them; {rows} images in flight after it"
    return Line("workers ended and were replaced", deaths, WORKERS - workers + abs(rows), found)


def closed(url: str) -> Line:
    """Whether every accepted request ended exactly once, and no seat is taken, soon after the last caller has gone."""
    until = time.monotonic() + SETTLED
    while True:
        samples = read(url)
        missing, rows = under_way(samples), int(number(samples, "rows_in_flight"))
        if not (missing or rows) or time.monotonic() >= until:
            break
        time.sleep(0.1)
    broken = int(number(samples, "engine_restarts_total"))
    ends = {
        dict(labels)["how"]: int(value) for (name, labels), value in sorted(samples.items(), key=str)
        if name == "ended_total"
    }  # fmt: skip
    told = ", ".join(f"{count:,} {how}" for how, count in ends.items())
    found = f"{told}; {rows} images in flight after it; {broken} broken turns"
    return Line("accepted requests ended, each once", sum(ends.values()), abs(missing) + abs(rows) + broken, found)
