"""Clients that know the bytes that they must get, and count every response that differs.

They use httpx, so that a second HTTP implementation reads what the service sends. `harness/load.py` measures rates.
"""

import asyncio
import random
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import uvloop

from harness.background import background
from harness.expected import TIMEOUT, Expected, ExpectedRequest, comparable_body

CORRECT, WRONG_BYTES = "correct", "wrong bytes"
TLS = ssl.create_default_context()
"""Shared by all clients. httpx would create one for each client in 10 ms, and no client here uses TLS."""
ClientAction = Callable[[httpx.AsyncClient, random.Random], Awaitable[object]]
"""What one client does again and again."""


def http_client(url: str) -> httpx.AsyncClient:
    """Return a client without a limit on its number of connections."""
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, verify=TLS, limits=httpx.Limits())


@dataclass
class LoadReport:
    """The outcomes of requests whose `expected` bytes are known."""

    expected: Expected
    retry_seconds: float = 0.0
    """How long a request is retried after a connection error or a 503."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Number of requests by outcome: `correct`, `wrong bytes`, a status or a connection error."""
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds of every correct response from the first attempt on, by the kind of its request."""
    completed_at: list[float] = field(default_factory=list)
    """`time.monotonic()` of every correct response."""
    retries: int = 0

    @property
    def total(self) -> int:
        return self.outcomes.total()

    @property
    def correct(self) -> int:
        return self.outcomes[CORRECT]

    @property
    def lost(self) -> int:
        """Requests that did not get their expected bytes."""
        return self.total - self.correct

    async def send(self, client: httpx.AsyncClient, request: ExpectedRequest) -> None:
        """Send a request, retry it if that is allowed, and record the outcome."""
        started_at = time.monotonic()
        while (outcome := await self._attempt(client, request)) not in (CORRECT, WRONG_BYTES):
            final = outcome.startswith("status") and outcome != "status 503"
            if final or time.monotonic() - started_at >= self.retry_seconds:
                break
            self.retries += 1
            await asyncio.sleep(0.05)
        self.record(request, outcome, time.monotonic() - started_at)

    async def _attempt(self, client: httpx.AsyncClient, request: ExpectedRequest) -> str:
        try:
            response = await request.send(client)
        except httpx.TransportError as error:
            return type(error).__name__
        return self.outcome(request, response.status_code, comparable_body(response))

    def outcome(self, request: ExpectedRequest, status: int, body: bytes) -> str:
        """Compare a response with the expected bytes."""
        if status != 200:
            return f"status {status}"
        return CORRECT if body == self.expected[request] else WRONG_BYTES

    def record(self, request: ExpectedRequest, outcome: str, seconds: float) -> None:
        """Count the outcome of a request that has just ended."""
        self.outcomes[outcome] += 1
        if outcome == CORRECT:
            self.completed_at.append(time.monotonic())
            self.latencies[request.kind].append(seconds)

    def rate(self, start: float, end: float) -> float:
        """Correct responses per second between two times."""
        return sum(start <= at < end for at in self.completed_at) / (end - start)

    def longest_gap(self, start: float, end: float) -> float:
        """The longest time without a correct response between two times."""
        times = [start, *(at for at in self.completed_at if start < at < end), end]
        return max(later - earlier for earlier, later in pairwise(times))

    def client(self, pause: float = 0.0) -> ClientAction:
        """Return a client that sends random requests with expected bytes and pauses after each response."""
        requests = list(self.expected)

        async def send_one(client: httpx.AsyncClient, source: random.Random) -> None:
            await self.send(client, source.choice(requests))
            await asyncio.sleep(pause)

        return send_one

    def errors(self) -> str:
        """The outcomes other than `correct`, as text that follows other text."""
        return "".join(f"; {count} {outcome}" for outcome, count in self.outcomes.items() if outcome != CORRECT)

    def p99(self) -> str:
        """The 99th percentile of latency by kind of request, as text."""
        kinds = ((kind, percentile(seconds, 0.99)) for kind, seconds in sorted(self.latencies.items()))
        return "p99 " + ", ".join(f"{kind} {1000 * seconds:,.0f} ms" for kind, seconds in kinds)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of `values` lies, 0 if there are none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Return a function that is true for that long from now on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def run_clients(url: str, clients: Iterable[ClientAction], running: Callable[[], bool], seed: int) -> None:
    """Run `clients` concurrently while `running`, each with its own connections and random numbers."""

    async def run_client(action: ClientAction, source: random.Random) -> None:
        async with http_client(url) as client:
            while running():
                await action(client, source)

    async def run_all() -> None:
        async with asyncio.TaskGroup() as group:
            for i, action in enumerate(clients):
                group.create_task(run_client(action, random.Random(f"{seed} {i}")))

    uvloop.run(run_all())


@contextmanager
def background_clients(url: str, clients: Iterable[ClientAction], seed: int) -> Iterator[None]:
    """Run `clients` in a thread until the block ends."""
    with background(lambda stopped: run_clients(url, clients, lambda: not stopped.is_set(), seed)):
        yield
