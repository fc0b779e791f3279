"""Overload: three times what it can do, by callers who do not wait for one another.

The most that it can do is measured before and after each flood, in the same run, by as many callers as keep it busy.
What is accepted has at most the whole queue before it, so it may take as long as the measured rate needs for that, and
half as much again.
"""

import asyncio
import itertools
import random
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

import uvloop

from chaos import accounting
from chaos.clients import ExpectedRequest, LoadReport, drawn, expected_answers, for_seconds, percentile, run_load
from chaos.scenario import Line, Setting
from chaos.weights import copied
from harness.load import build_request
from harness.server import SERVICE, environment, run_server

IMAGES, QUEUE = 4, 128
"""Images of each request, and of all that may wait."""
BUSY = QUEUE // IMAGES // 2
"""Callers that keep every seat taken, and are never refused."""
TIMES = 3
AT_ONCE = 0.25
"""The share of the time that accepted work is allowed, in which refusals have to be out."""


@dataclass
class Flood:
    """What an open loop of requests was answered, each on a connection of its own.

    They are raw: so many of httpx's would take a core themselves, and measure what they do to each other.
    """

    tally: LoadReport
    refused: list[float] = field(default_factory=list)
    """Seconds of refusals as they should be: 429 with a Retry-After."""

    async def ask(self, url: str, asked: ExpectedRequest) -> None:
        """Ask once."""
        begun, at = time.monotonic(), urlsplit(url)
        try:
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            writer.write(build_request(asked.url).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            writer.close()
        except OSError as error:
            self.tally.answers[type(error).__name__] += 1
            return
        seconds, status = time.monotonic() - begun, head[9:12].decode()
        if status == "429" and re.search(rb"(?i)\r\nretry-after: [1-9]", head):
            self.refused.append(seconds)
        elif status == "200" and body == self.tally.truth[asked]:
            self.tally.answers["right"] += 1
            self.tally.at.append(time.monotonic())
            self.tally.latencies[asked.kind].append(seconds)
        else:
            self.tally.answers[f"status {status}"] += 1

    async def pour(self, url: str, rate: float, seconds: float) -> None:
        """Ask `rate` times a second, whatever becomes of it, and wait for the last answer."""
        pool = itertools.cycle(self.tally.truth)
        async with asyncio.TaskGroup() as group:
            begun = time.monotonic()
            for i in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, begun + i / rate - time.monotonic()))
                group.create_task(self.ask(url, next(pool)))


def peak(url: str, truth: Mapping[ExpectedRequest, bytes], seconds: float, seed: int) -> float:
    """Right answers a second to callers who keep every seat taken."""
    full, begun = LoadReport(truth), time.monotonic()
    run_load(url, [full.caller()] * BUSY, for_seconds(seconds), seed)
    return full.rate(begun + seconds / 4, begun + seconds)


def share(peaks: Sequence[float], goodputs: Sequence[float]) -> float:
    """What a flood leaves of the peaks before and after it: others may use the machine more or less as time goes on."""
    return statistics.median(2 * good / sum(two) for good, two in zip(goodputs, pairwise(peaks), strict=True))


def run(setting: Setting) -> Iterator[Line]:
    rounds, seconds, least, slack = (1, 4.0, 0.25, 3.0) if setting.quick else (3, 15.0, 0.9, 1.5)
    weights = copied(setting.root, "ddpm")
    source = random.Random(setting.seed)
    seeds = [source.randrange(2**53) for _ in range(24)]
    truth = expected_answers(lambda _: drawn("ddpm", seeds, f"steps=5&guidance=1&n={IMAGES}"), weights=weights)
    limits = {"weights": weights, "max_images": IMAGES, "queue_images": QUEUE, "workers": 2, "device": "cpu"}
    with run_server(SERVICE, environment(port=0, **limits)) as server:
        run_load(
            server.url, [LoadReport(truth).caller()] * BUSY, for_seconds(1), setting.seed
        )  # what comes first warms it up
        flood = Flood(LoadReport(truth))
        peaks, goodputs = [peak(server.url, truth, seconds, setting.seed)], list[float]()
        for _ in range(rounds):
            begun = time.monotonic()
            uvloop.run(flood.pour(server.url, TIMES * peaks[-1], seconds))
            goodputs.append(flood.tally.rate(begun + seconds / 4, begun + seconds))
            peaks.append(peak(server.url, truth, seconds, setting.seed))
        goodput = statistics.median(goodputs)
        bound = slack * QUEUE / (goodput * IMAGES)
        accepted = [seconds for kind in flood.tally.latencies.values() for seconds in kind]
        late, refused = percentile(accepted, 0.99), percentile(flood.refused, 0.99)
        asked = flood.tally.answers.total() + len(flood.refused)
        yield Line(
            f"{TIMES} times the peak for {rounds * seconds:g} s",
            asked,
            flood.tally.lost,
            f"{flood.tally.right:,} drawn, {len(flood.refused):,} refused{flood.tally.wrong()}",
        )
        yield Line(
            "refused with 429 and Retry-After",
            len(flood.refused),
            int(not 0 < refused <= AT_ONCE * bound),
            f"p50 {1000 * statistics.median(flood.refused or [0]):.0f} ms, p99 {1000 * refused:.0f} ms, "
            f"{1000 * AT_ONCE * bound:.0f} allowed",
        )
        yield Line(
            "accepted under overload",
            len(accepted),
            int(late > bound),
            f"p99 {late:.2f} s, {bound:.2f} allowed by the queue's {QUEUE} images and the rate",
        )
        kept = share(peaks, goodputs)
        yield Line(
            "goodput beside the peak",
            flood.tally.right,
            int(kept < least),
            f"{goodput:.1f} of {statistics.median(peaks):.1f} requests a second: {kept:.2f}, {least:g} at least",
        )
        yield accounting.closed(server.url)
