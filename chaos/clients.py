"""Callers of a running service, who know the bytes that they are to get.

What a request gives alone is asked for first, of a service that does nothing else; whatever is done to another service
after that, its answers are compared with these, byte by byte.
"""

import asyncio
import random
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import uvloop

from benchmarks.batch_invariance import requests
from harness.server import SERVICE, environment, run_server
from service.codecs.png import png

REQUEST_TIMEOUT = 120.0
"""Seconds after which a request counts as one without an end."""
FEW = 8
"""Steps up to which a draw counts as one of few."""
FORMATS = ("png", "webp", "npz", "zip", "json", "events")
TLS = ssl.create_default_context()
"""Made once: httpx would make one a client, at 10 ms each, and nobody here speaks TLS."""


Caller = Callable[[httpx.AsyncClient, random.Random], Awaitable[object]]
"""What one caller does again and again."""


@dataclass(frozen=True)
class ExpectedRequest:
    """A request whose answer is always the same bytes."""

    url: str
    picture: bytes | None = None
    """What is uploaded with it, if anything."""

    @property
    def kind(self) -> str:
        """How much work it is: what latencies are told apart by."""
        if self.picture is not None:
            return "upload"
        steps = int(httpx.URL(self.url).params.get("steps", "1"))
        return "one-shot" if steps == 1 else "few-step" if steps <= FEW else "many-step"

    async def of(self, client: httpx.AsyncClient) -> httpx.Response:
        """The answer, read to its end."""
        files = None if self.picture is None else {"image": self.picture}
        return await client.post(self.url, files=files)


def content(answer: httpx.Response) -> bytes:
    """What the request alone decides of an answer: of events, those that do not tell of the time."""
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return answer.content
    told = answer.content.split(b"\n\n")
    return b"\n\n".join(event for event in told if not event.startswith((b"event: progress", b"event: preview")))


def mixed_requests(models: list[dict[str, Any]], source: random.Random, each: int) -> list[ExpectedRequest]:
    """Different requests: `each` of every one of `models`, in all formats, and walks and uploads besides."""
    counts = (*(1,) * 10, 2, 5, 20)
    pool = [ExpectedRequest(url) for url in requests(models, source, each, FORMATS, counts, steps=16)]
    for model in models:
        how = f"model={model['name']}" + (f"&steps={source.randint(5, 10)}" if "steps" in model["takes"] else "")
        for form in ("png", "gif", "zip"):
            one, two = (source.randrange(2**53) for _ in range(2))
            pool.append(ExpectedRequest(f"/interpolate?{how}&seed={one}&seed={two}&frames=5&format={form}"))
        if model["encodes"] and "steps" not in model["takes"]:  # whose encoding is not a chain of its own
            picture = random_drawing(source)
            pool += [
                ExpectedRequest(f"/{verb}?model={model['name']}&format=npz", picture)
                for verb in ("encode", "reconstruct")
            ]
    return pool


def random_drawing(source: random.Random) -> bytes:
    """A picture of 28x28, as a PNG, which nobody has drawn; its corners are black."""
    grey = np.random.default_rng(source.randrange(2**32)).integers(0, 256, (28, 28), np.uint8)
    grey[:4] = grey[-4:] = grey[:, :4] = grey[:, -4:] = 0
    return png(grey)


def drawn(model: str, seeds: Iterable[int], query: str) -> list[ExpectedRequest]:
    """A request of `model` for each seed."""
    return [ExpectedRequest(f"/generate?model={model}&seed={seed}&{query}") for seed in seeds]


def expected_answers(
    choose: Callable[[list[dict[str, Any]]], list[ExpectedRequest]], **settings: object
) -> dict[ExpectedRequest, bytes]:
    """What each of the requests that `choose` finds for the models gives by itself, of a service of their own."""

    async def ask(url: str) -> dict[ExpectedRequest, bytes]:
        async with client_of(url) as client:
            models = (await client.get("/models")).json()["models"]
            found = {}
            for asked in choose(models):
                answer = await asked.of(client)
                answer.raise_for_status()
                found[asked] = content(answer)
            return found

    with run_server(SERVICE, environment(port=0, device="cpu", workers=1, **settings)) as server:
        return uvloop.run(ask(server.url))


def client_of(url: str) -> httpx.AsyncClient:
    """A caller with as many connections as it needs."""
    return httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT, verify=TLS, limits=httpx.Limits())


@dataclass
class LoadReport:
    """What callers were answered, against the `truth`."""

    truth: Mapping[ExpectedRequest, bytes]
    answers: Counter[str] = field(default_factory=Counter)
    """By what they were: `right`, `other bytes`, a status, or an error of the connection."""
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds of each right answer, from the first try, by the kind of its request."""
    at: list[float] = field(default_factory=list)
    """When each of them came, by `time.monotonic`."""
    retries: int = 0
    """Times that a request had to be asked again."""
    retry_seconds: float = 0.0
    """Seconds that a caller who is cut off, or told to come again, goes on asking."""

    @property
    def right(self) -> int:
        return self.answers["right"]

    @property
    def lost(self) -> int:
        """Requests that were not answered with their bytes in the end."""
        return self.answers.total() - self.right

    async def ask(self, client: httpx.AsyncClient, asked: ExpectedRequest) -> None:
        """Ask until there is an answer, and count it."""
        begun = time.monotonic()
        while (what := await self._answer(client, asked)) not in ("right", "other bytes"):
            final = what.startswith("status") and what != "status 503"
            if final or time.monotonic() - begun >= self.retry_seconds:
                break
            self.retries += 1
            await asyncio.sleep(0.05)
        self.answers[what] += 1
        if what == "right":
            self.at.append(time.monotonic())
            self.latencies[asked.kind].append(self.at[-1] - begun)

    async def _answer(self, client: httpx.AsyncClient, asked: ExpectedRequest) -> str:
        try:
            answer = await asked.of(client)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        return "right" if content(answer) == self.truth[asked] else "other bytes"

    def rate(self, since: float, until: float) -> float:
        """Right answers a second between two times."""
        return sum(since <= at < until for at in self.at) / (until - since)

    def gap(self, since: float, until: float) -> float:
        """The longest time without a right answer between two times."""
        times = [since, *(at for at in self.at if since < at < until), until]
        return max(late - early for early, late in pairwise(times))

    def caller(self, rest: float = 0.0) -> Caller:
        """One who asks for anything of which the truth is known, and rests for so many seconds after each answer."""
        pool = list(self.truth)

        async def ask(client: httpx.AsyncClient, source: random.Random) -> None:
            await self.ask(client, source.choice(pool))
            await asyncio.sleep(rest)

        return ask

    def wrong(self) -> str:
        """What was not right, in words."""
        return "".join(f"; {count} {what}" for what, count in self.answers.items() if what != "right")


def for_seconds(seconds: float) -> Callable[[], bool]:
    """True for so long from now on."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


def run_load(url: str, callers: Iterable[Caller], going: Callable[[], bool], seed: int) -> None:
    """Have `callers`, each with a connection and chances of its own, do what they do while it is `going`."""

    async def go_on(caller: Caller, source: random.Random) -> None:
        async with client_of(url) as client:
            while going():
                await caller(client, source)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for i, caller in enumerate(callers):
                group.create_task(go_on(caller, random.Random(f"{seed} {i}")))

    uvloop.run(all_of_them())


@contextmanager
def background_load(url: str, callers: Iterable[Caller], seed: int) -> Iterator[None]:
    """The same while the block lasts."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pressing = pool.submit(run_load, url, callers, lambda: not over.is_set(), seed)
        try:
            yield
        finally:
            over.set()
        pressing.result()


def percentile(seconds: list[float], share: float) -> float:
    """The value below which that share of `seconds` lies; 0 of none."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else 0.0


def p99s(tally: LoadReport) -> str:
    """The 99th percentile of each kind of request, in words."""
    found = ((kind, percentile(seconds, 0.99)) for kind, seconds in sorted(tally.latencies.items()))
    return "p99 " + ", ".join(f"{kind} {1000 * seconds:,.0f} ms" for kind, seconds in found)
