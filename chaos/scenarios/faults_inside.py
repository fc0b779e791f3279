"""Faults inside: a step on the device raises, is not a number, finds no memory, stalls or dies; so do others.

Some of the callers are guilty: their requests have the device of `chaos/faulty.py` do what their seeds say, at random.
The others are innocent, ride in the same batches, and are to get their bytes. In the first part no fault ends a worker,
and nobody has to ask twice. In the second each does: whoever is cut off by it, or told to come again, does.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np

from chaos import accounting, worker
from chaos.clients import (
    REQUEST_TIMEOUT,
    ExpectedRequest,
    LoadReport,
    drawn,
    expected_answers,
    for_seconds,
    p99s,
    random_drawing,
    run_load,
)
from chaos.faulty import faulty_seed, healthy_seed
from chaos.scenario import Line, Setting
from chaos.weights import copied
from harness.server import Server, environment, run_server
from service.codecs.images import png
from service.errors import MEDIA_TYPE

INNOCENT = 12
STALL_SECONDS = 2
GENTLE = {
    "raises": "a step raises",
    "is not a number": "a step gives NaN",
    "finds no memory": "a step finds no memory",
    "encoder": "the image encoder raises",
    "finds no memory for many": "a step finds memory for two rows only",
    "pauses": "the event loop is held up, bearably",
}
"""Faults that end no worker; the last two fail nobody at all."""
HARMLESS = ("finds no memory for many", "pauses")
DEADLY = {
    "dies": "the process dies in a step",
    "stalls": f"a step stalls for more than {STALL_SECONDS} s",
    "blocks": f"the event loop is blocked for more than {STALL_SECONDS} s",
}


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copied(setting.root, "cgan", "ddpm", "vae")

    def innocents(_: list[dict[str, object]]) -> list[ExpectedRequest]:
        pool = list[ExpectedRequest]()
        for model, query in (("cgan", "digit=3"), ("cgan", "n=20&format=zip"), ("ddpm", "steps=4"), ("vae", "n=3")):
            pool += drawn(model, (healthy_seed(source) for _ in range(8)), query)
        return pool + [ExpectedRequest("/reconstruct?model=vae", random_drawing(source)) for _ in range(8)]

    truth = expected_answers(innocents, weights=weights)
    settings = environment(
        port=0, weights=weights, workers=accounting.WORKERS, device="cpu", watchdog_timeout=STALL_SECONDS
    )
    with run_server(worker.COMMAND, settings) as server:
        seconds = 4.0 if setting.quick else 90.0
        yield from _part(server, truth, GENTLE, seconds, 0.05, setting.seed)
        yield accounting.closed(server.url)
        seconds, pause = (4.0, 0.7) if setting.quick else (120.0, 4.0)
        yield from _part(server, truth, DEADLY, seconds, pause, setting.seed)
        yield accounting.replaced(server)


def _part(
    server: Server, truth: dict[ExpectedRequest, bytes], faults: dict[str, str], seconds: float, pause: float, seed: int
) -> Iterator[Line]:
    """Guilty callers, each with up to twice `pause` seconds between its requests, among innocent ones."""
    deadly = faults is DEADLY
    tally = LoadReport(truth, retry_seconds=REQUEST_TIMEOUT if deadly else 0.0)
    done, wrong = Counter[str](), Counter[str]()
    fate = ("503",) if deadly else ("500",)
    expected = dict.fromkeys(HARMLESS, ("200",))

    async def guilty_one(client: httpx.AsyncClient, source: random.Random) -> None:
        name = min(faults, key=lambda name: (done[name], source.random()))
        done[name] += 1
        said = await _sentence(client, _crime(name, source))
        wrong[name] += said not in expected.get(name, fate)
        await asyncio.sleep(source.uniform(0, 2 * pause))

    begun = time.monotonic()
    guilty_callers = [guilty_one] * (len(faults) if deadly else 2)  # a death takes as long as two workers need to start
    run_load(server.url, [*[tally.caller()] * INNOCENT, *guilty_callers], for_seconds(seconds), seed)
    took = time.monotonic() - begun
    for name, title in faults.items():
        yield Line(title, done[name], wrong[name])
    found = f"{tally.right / took:,.0f} a second; {p99s(tally)}; asked again {tally.retries:,} times{tally.wrong()}"
    yield Line(
        f"answers to the innocent beside {'deaths' if deadly else 'them'}", tally.answers.total(), tally.lost, found
    )


def _crime(name: str, source: random.Random) -> ExpectedRequest:
    """A request that does it."""
    if name == "encoder":
        grey = np.zeros((28, 28), np.uint8)
        grey[0, 0] = 255
        grey[9:19, 9:19] = source.randrange(64, 256)
        return ExpectedRequest("/reconstruct?model=vae", png(grey))
    model, query = source.choice((("cgan", "digit=3"), ("ddpm", "steps=4"), ("vae", "n=3")))
    return drawn(model, [faulty_seed(name, source)], query)[0]


async def _sentence(client: httpx.AsyncClient, asked: ExpectedRequest) -> str:
    """The status that the guilty got, `cut off`, or what an answer should not be."""
    try:
        answer = await asked.of(client)
    except httpx.TransportError:
        return "cut off"
    status = str(answer.status_code)
    if answer.status_code == 200:
        return status
    if answer.headers.get("content-type") != MEDIA_TYPE or "Traceback" in answer.text:
        return f"{status} that is no problem document"
    return status
