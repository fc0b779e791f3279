"""Overload: an open loop of requests at three times the peak rate.

Requests do not wait for earlier responses. The peak is measured before and after each flood, with as many
clients as keep the service busy. An accepted request has at most the whole queue in front of it, so it may take as long
as the queue takes at the measured rate, and half as long again.
"""

import asyncio
import itertools
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

import uvloop

from chaos import accounting
from chaos.scenario import Line, Setting
from harness.clients import LoadReport, for_seconds, percentile, run_clients
from harness.expected import Expected, ExpectedRequest, expected_responses, seeded_requests
from harness.load import build_request
from harness.server import SERVICE, environment, run_server
from harness.weights import copy_weights

IMAGES, QUEUE = 4, 128
"""Images of each request, and of the whole queue."""
BUSY_CLIENTS = QUEUE // IMAGES // 2
"""Clients that keep every batch slot taken and never fill the queue."""
OVERLOAD = 3
"""Rate of the flood in peaks."""
REFUSAL_SHARE = 0.25
"""Share of the time allowed to accepted requests within which a refusal must be sent."""


@dataclass
class Flood:
    """Requests at a fixed rate, each on a new connection.

    They are raw HTTP. This many httpx requests would take a whole core, and would measure each other.
    """

    report: LoadReport
    refusals: list[float] = field(default_factory=list)
    """Seconds of every proper refusal: status 429 with Retry-After."""

    async def send(self, url: str, request: ExpectedRequest) -> None:
        """Send one request and record its outcome."""
        started_at, address = time.monotonic(), urlsplit(url)
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(build_request(request.url, headers="Connection: close\r\n"))
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            writer.close()
        except OSError as error:
            self.report.record(request, type(error).__name__, time.monotonic() - started_at)
            return
        seconds, status = time.monotonic() - started_at, head[9:12].decode()
        if status == "429" and re.search(rb"(?i)\r\nretry-after: [1-9]", head):
            self.refusals.append(seconds)
        else:
            self.report.record(request, self.report.outcome(request, int(status or 0), body), seconds)

    async def run(self, url: str, rate: float, seconds: float) -> None:
        """Send `rate` requests per second, then wait for the last response."""
        requests = itertools.cycle(self.report.expected)
        async with asyncio.TaskGroup() as group:
            start = time.monotonic()
            for i in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, start + i / rate - time.monotonic()))
                group.create_task(self.send(url, next(requests)))


def peak_rate(url: str, expected: Expected, seconds: float, seed: int) -> float:
    """Return the correct responses per second to clients that keep every batch slot taken."""
    report, start = LoadReport(expected), time.monotonic()
    run_clients(url, [report.client()] * BUSY_CLIENTS, for_seconds(seconds), seed)
    return report.rate(start + seconds / 4, start + seconds)


def goodput_share(peaks: Sequence[float], goodputs: Sequence[float]) -> float:
    """Return the median share of goodput in the mean of the peaks before and after it.

    Two peaks are compared because other programs may slow the machine down for a while.
    """
    return statistics.median(2 * good / sum(two) for good, two in zip(goodputs, pairwise(peaks), strict=True))


def run(setting: Setting) -> Iterator[Line]:
    rounds, seconds, required, slack = (1, 4.0, 0.25, 3.0) if setting.quick else (3, 15.0, 0.9, 1.5)
    weights = copy_weights(setting.root, "ddpm")
    source = random.Random(setting.seed)
    seeds = [source.randrange(2**53) for _ in range(24)]
    query = f"steps=5&guidance=1&n={IMAGES}"
    expected = expected_responses(lambda _: seeded_requests("ddpm", seeds, query), weights=weights)
    limits = {"weights": weights, "max_images": IMAGES, "queue_images": QUEUE, "workers": 2, "device": "cpu"}
    with run_server(SERVICE, environment(port=0, **limits)) as server:
        peak_rate(server.url, expected, 1, setting.seed)  # warms the service up
        flood = Flood(LoadReport(expected))
        peaks, goodputs = [peak_rate(server.url, expected, seconds, setting.seed)], list[float]()
        for _ in range(rounds):
            start = time.monotonic()
            uvloop.run(flood.run(server.url, OVERLOAD * peaks[-1], seconds))
            goodputs.append(flood.report.rate(start + seconds / 4, start + seconds))
            peaks.append(peak_rate(server.url, expected, seconds, setting.seed))
        yield from _lines(flood, peaks, goodputs, rounds * seconds, required, slack)
        yield accounting.requests_accounted(server.url)


def _lines(
    flood: Flood, peaks: list[float], goodputs: list[float], seconds: float, required: float, slack: float
) -> Iterator[Line]:
    report, goodput = flood.report, statistics.median(goodputs)
    bound = slack * QUEUE / (goodput * IMAGES)
    accepted = [latency for latencies in report.latencies.values() for latency in latencies]
    accepted_p99, refusal_p99 = percentile(accepted, 0.99), percentile(flood.refusals, 0.99)
    yield Line(
        f"requests at {OVERLOAD} times the peak for {seconds:g} s",
        report.total + len(flood.refusals),
        report.lost,
        f"{report.correct:,} generated, {len(flood.refusals):,} refused{report.errors()}",
    )
    yield Line(
        "refused with 429 and Retry-After",
        len(flood.refusals),
        int(not 0 < refusal_p99 <= REFUSAL_SHARE * bound),
        f"p50 {1000 * statistics.median(flood.refusals or [0]):.0f} ms, p99 {1000 * refusal_p99:.0f} ms, "
        f"{1000 * REFUSAL_SHARE * bound:.0f} ms allowed",
    )
    yield Line(
        "accepted under overload",
        len(accepted),
        int(accepted_p99 > bound),
        f"p99 {accepted_p99:.2f} s, {bound:.2f} s allowed for a queue of {QUEUE} images at this rate",
    )
    share = goodput_share(peaks, goodputs)
    yield Line(
        "goodput compared with the peak",
        report.correct,
        int(share < required),
        f"{goodput:.1f} of {statistics.median(peaks):.1f} responses/s: {share:.2f}, at least {required:g} required",
    )
