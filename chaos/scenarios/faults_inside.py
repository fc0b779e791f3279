"""Faults inside: a step on the device raises, returns NaN, runs out of memory, stalls or kills the process.

Some clients send faulty requests: their seeds select a fault of the device in `chaos/faulty.py`. The other clients
send healthy requests, share batches with the faulty ones, and must get their expected bytes. In the first part no
fault ends a worker, and no healthy request is retried. In the second part every fault ends a worker, and healthy
clients retry.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import httpx
import numpy as np

from chaos import accounting, worker
from chaos.faulty import faulty_seed, healthy_seed
from chaos.scenario import Line, Setting
from harness.clients import LoadReport, for_seconds, run_clients
from harness.expected import (
    TIMEOUT,
    Expected,
    ExpectedRequest,
    expected_responses,
    random_drawing,
    seeded_requests,
)
from harness.server import Server, environment, run_server
from harness.weights import copy_weights
from service.codecs.png import png
from service.errors import MEDIA_TYPE

HEALTHY_CLIENTS = 12
WATCHDOG_SECONDS = 2
MODELS = ("cgan", "ddpm", "vae")
HEALTHY = (("cgan", "digit=3"), ("cgan", "n=20&format=zip"), ("ddpm", "steps=4"), ("vae", "n=3"))
"""Models and parameters of healthy requests."""
RECOVERABLE = {
    "raises": "a step raises",
    "nan": "a step returns NaN",
    "out of memory": "a step runs out of memory",
    "encoder": "the image encoder raises",
    "out of memory for many": "a step runs out of memory for more than two rows",
    "pauses": "the event loop is blocked for less than the watchdog allows",
}
"""Faults that end no worker."""
HARMLESS = ("out of memory for many", "pauses")
"""Recoverable faults that fail no request."""
FATAL = {
    "dies": "a step kills the process",
    "stalls": f"a step stalls for more than {WATCHDOG_SECONDS} s",
    "blocks": f"the event loop is blocked for more than {WATCHDOG_SECONDS} s",
}
"""Faults that end a worker."""


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copy_weights(setting.root, *MODELS)

    expected = expected_responses(lambda _: healthy_requests(source, HEALTHY), weights=weights)
    settings = environment(
        port=0, weights=weights, workers=accounting.WORKERS, device="cpu", watchdog_timeout=WATCHDOG_SECONDS
    )
    with run_server(worker.COMMAND, settings) as server:
        seconds = 4.0 if setting.quick else 90.0
        yield from recoverable(server, expected, seconds, setting.seed)
        yield accounting.requests_accounted(server.url)
        seconds, pause = (4.0, 0.7) if setting.quick else (120.0, 4.0)
        yield from _fatal(server, expected, seconds, pause, setting.seed)
        yield accounting.workers_replaced(server)


def healthy_requests(source: random.Random, queries: Sequence[tuple[str, str]]) -> list[ExpectedRequest]:
    """Return requests that select no fault: eight for each model and query, and eight uploads."""
    requests = list[ExpectedRequest]()
    for model, query in queries:
        requests += seeded_requests(model, (healthy_seed(source) for _ in range(8)), query)
    return requests + [ExpectedRequest("/reconstruct?model=vae", random_drawing(source)) for _ in range(8)]


def recoverable(server: Server, expected: Expected, seconds: float, seed: int) -> Iterator[Line]:
    client = FaultyClient(RECOVERABLE, dict.fromkeys(RECOVERABLE, "500") | dict.fromkeys(HARMLESS, "200"), pause=0.05)
    yield from _part(server, LoadReport(expected), client, 2, seconds, seed)


def _fatal(server: Server, expected: Expected, seconds: float, pause: float, seed: int) -> Iterator[Line]:
    client = FaultyClient(FATAL, dict.fromkeys(FATAL, "503"), pause)
    # A client for each fault: a fatal request takes as long as two workers need to start.
    yield from _part(server, LoadReport(expected, retry_seconds=TIMEOUT), client, len(FATAL), seconds, seed)


class FaultyClient:
    """Sends faulty requests, the rarest fault first, and counts them and unexpected responses to them."""

    def __init__(self, faults: dict[str, str], statuses: dict[str, str], pause: float) -> None:
        self.faults, self.statuses, self.pause = faults, statuses, pause
        self.sent, self.wrong = Counter[str](), Counter[str]()

    async def send_one(self, client: httpx.AsyncClient, source: random.Random) -> None:
        """Send one faulty request, then pause for up to twice `pause` seconds."""
        name = min(self.faults, key=lambda name: (self.sent[name], source.random()))
        self.sent[name] += 1
        self.wrong[name] += await send_faulty(client, name, source) != self.statuses[name]
        await asyncio.sleep(source.uniform(0, 2 * self.pause))

    def lines(self) -> Iterator[Line]:
        for name, action in self.faults.items():
            yield Line(action, self.sent[name], self.wrong[name], f"status {self.statuses[name]}")


def _part(
    server: Server, report: LoadReport, faulty: FaultyClient, faulty_clients: int, seconds: float, seed: int
) -> Iterator[Line]:
    """Run faulty clients beside healthy ones, for longer if a slow machine has not met every fault yet."""
    started_at, in_time = time.monotonic(), for_seconds(seconds)
    clients = [*[report.client()] * HEALTHY_CLIENTS, *[faulty.send_one] * faulty_clients]
    run_clients(server.url, clients, lambda: in_time() or len(faulty.sent) < len(faulty.faults), seed)
    rate = report.correct / (time.monotonic() - started_at)
    yield from faulty.lines()
    figures = f"{rate:,.0f} responses/s; {report.p99()}; {report.retries:,} retries{report.errors()}"
    kind = "fatal" if faulty.faults is FATAL else "recoverable"
    yield Line(f"healthy requests beside {kind} faults", report.total, report.lost, figures)


def _faulty_request(name: str, source: random.Random) -> ExpectedRequest:
    """Return a request that selects the fault called `name`."""
    if name == "encoder":
        grey = np.zeros((28, 28), np.uint8)
        grey[0, 0] = 255
        grey[9:19, 9:19] = source.randrange(64, 256)
        return ExpectedRequest("/reconstruct?model=vae", png(grey))
    model, query = source.choice((("cgan", "digit=3"), ("ddpm", "steps=4"), ("vae", "n=3")))
    return seeded_requests(model, [faulty_seed(name, source)], query)[0]


async def send_faulty(client: httpx.AsyncClient, name: str, source: random.Random) -> str:
    """Send a request with the fault called `name`. Returns its status, or text that says what is wrong with it."""
    try:
        response = await _faulty_request(name, source).send(client)
    except httpx.TransportError as error:
        return type(error).__name__
    status = str(response.status_code)
    if status == "200":
        return status
    if response.headers.get("content-type") != MEDIA_TYPE or "Traceback" in response.text:
        return f"{status} without a problem document"
    return status
