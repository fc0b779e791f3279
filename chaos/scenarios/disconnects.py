"""Hang-ups: half of all callers hang up at random moments.

They wait, are drawn for, or are in the middle of a body. The other half gets its bytes, and when all is over no seat is
taken and the neighbours alone are served as fast as before.
"""

import asyncio
import random
from collections.abc import Iterator

import httpx

from chaos import accounting
from chaos.clients import LoadReport, drawn, expected_answers, for_seconds, mixed_requests, p99s, run_load
from chaos.scenario import Line, Setting
from chaos.weights import copied
from harness.server import SERVICE, environment, run_server

CLIENTS = 32
LONGEST = 0.6
"""Seconds within which a caller hangs up: until then a part of what they ask for is drawn."""


def run(setting: Setting) -> Iterator[Line]:
    seconds, least = (3.0, 0.25) if setting.quick else (120.0, 0.8)
    around = seconds / 2 if setting.quick else 20.0
    weights = copied(setting.root, "cgan", "ddpm", "vae")
    source = random.Random(setting.seed)
    truth = expected_answers(lambda models: mixed_requests(models, source, 4 if setting.quick else 12), weights=weights)
    pool = list(truth)
    long = drawn("ddpm", range(64), "steps=10&n=20&format=zip") + drawn("cgan", range(64), "n=200&format=events")
    gone = 0

    async def hang_up(client: httpx.AsyncClient, source: random.Random) -> None:
        nonlocal gone
        asked = source.choice(pool if source.random() < 0.5 else long)
        try:
            async with asyncio.timeout(source.uniform(0, LONGEST)):
                await asked.of(client)
        except TimeoutError:  # which closes the connection
            gone += 1

    with run_server(SERVICE, environment(port=0, weights=weights, workers=2, device="cpu")) as server:

        def neighbours(duration: float, others: int) -> LoadReport:
            tally = LoadReport(truth)
            callers = [*[tally.caller()] * (CLIENTS // 2), *[hang_up] * others]
            run_load(server.url, callers, for_seconds(duration), setting.seed)
            return tally

        neighbours(1.0, 0)
        before = neighbours(around, 0)
        beside = neighbours(seconds, CLIENTS // 2)
        yield Line(f"callers hung up in {seconds:g} s", gone, 0 if gone else 1, f"{CLIENTS // 2} of {CLIENTS} callers")
        found = f"{p99s(beside)}{beside.wrong()}"
        yield Line("answers to their neighbours", beside.answers.total(), beside.lost, found)
        yield accounting.closed(server.url)
        after = neighbours(around, 0)
        share = after.right / before.right
        found = f"{share:.2f} of the answers before, {least:g} at least{after.wrong()}"
        yield Line("answers to them alone again", after.right, after.lost + int(share < least), found)
