"""Traffic of every kind, whose responses are known byte for byte.

A request is retried while a fault affects it, and must end with its expected bytes within TIMEOUT. An error or a
refusal without a fault is a loss.
"""

import asyncio
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from harness.clients import CORRECT, WRONG_BYTES
from harness.expected import (
    TIMEOUT,
    Expected,
    ExpectedRequest,
    Model,
    comparable_body,
    random_drawing,
    random_urls,
)

MODELS = ("cgan", "ddpm", "emoji_cgan", "vae")
"""A model of one step, one of many, one of colour pictures and one with an encoder."""
REPLACED = "cgan"
"""The model whose weights are replaced by others and back. Its responses name their weights."""
ARCHIVES = "streamed archives"
"""The kind of requests with the largest responses."""
HANG_UP_SHARE = 0.06
"""Share of requests whose client disconnects at a random moment."""
HANG_UP_SECONDS = 0.1
"""The longest time until such a client disconnects."""
AFTERMATH = 2.0
"""Seconds after a fault in which a request may still be affected by it."""
RECENT = 1.0
"""Seconds for which the service may still be busy with a request whose client has disconnected."""


def soak_requests(models: Iterable[Model], source: random.Random, count: int) -> dict[str, list[ExpectedRequest]]:
    """Return requests by kind, with `count` of each for every model."""
    by_name = {model["name"]: model for model in models}
    served = [by_name[name] for name in MODELS]
    seeds = iter(lambda: source.randrange(2**53), None)
    few, many = (1, 1, 2, 3), (17, 24)
    urls = random_urls(served, source, count, ("png", "webp", "npz", "zip", "json"), few, extra_steps=8)
    archives = random_urls(served, source, count, ("npz", "zip", "json"), many, extra_steps=2)
    events = random_urls(served, source, count, ("events",), few, extra_steps=8)
    ends = [(model["name"], next(seeds), next(seeds)) for model in served for _ in range(count)]
    vae = by_name["vae"]
    codes = np.random.default_rng(source.randrange(2**32)).normal(size=(count, 2, math.prod(vae["code_shape"])))
    return {
        "queries": [ExpectedRequest(url, method="GET") for url in urls],
        "JSON bodies": [
            _json("/generate", model=model["name"], seed=next(seeds), n=source.choice(few), format="json")
            for model in served
            for _ in range(count)
        ],
        ARCHIVES: [ExpectedRequest(url) for url in archives],
        "event streams": [ExpectedRequest(f"{url}&previews=true") for url in events],
        "interpolations": [
            ExpectedRequest(f"/interpolate?model={name}&seed={start}&seed={end}&frames=5&format={form}", method="GET")
            for (name, start, end), form in zip(ends, ("png", "gif", "webp", "zip") * count, strict=True)
        ],
        "uploads": [
            ExpectedRequest(f"/{path}?model=vae&format=npz", random_drawing(source))
            for path in ("encode", "reconstruct")
            for _ in range(2 * count)
        ],
        "codes": [
            _json("/decode", model="vae", codes=code.reshape(2, *vae["code_shape"]).tolist(), format="npz")
            for code in codes
        ],
        "OpenAI's API": [
            _json("/v1/images/generations", model=name, prompt="any", n=2, seed=next(seeds), **options)
            for name, options in (("ddpm", {"stream": True, "partial_images": 1}), ("emoji_cgan", {}))
            for _ in range(count)
        ],
        "Open Inference Protocol": [_inference(name, next(seeds)) for name in ("ddpm", "vae") for _ in range(count)],
    }


def _json(url: str, **body: Any) -> ExpectedRequest:
    return ExpectedRequest(url, json=json.dumps(body))


def _inference(model: str, seed: int) -> ExpectedRequest:
    inputs = [{"name": name, "datatype": "INT64", "shape": [1], "data": [value]} for name, value in
              (("n", 2), ("seed", seed))]  # fmt: skip
    return _json(f"/v2/models/{model}/infer", inputs=inputs)


@dataclass
class Traffic:
    """Clients that send the requests of all kinds, and the outcomes.

    One thread runs the clients; another one injects faults, and sets `paused` and `hurried`.
    """

    kinds: Mapping[str, list[ExpectedRequest]]
    expected: Mapping[str, Expected]
    """Expected bodies by the value of X-Model-Digest; of responses without that header, by ""."""
    pause: float
    """Mean seconds that a client pauses between two requests."""
    ended: Counter[str] = field(default_factory=Counter)
    """Requests that ended with their expected bytes, by kind."""
    lost: Counter[str] = field(default_factory=Counter)
    """Requests that ended otherwise, and those with an error that no fault explains, by kind."""
    problems: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """What was wrong with them, by kind."""
    retries: Counter[str] = field(default_factory=Counter)
    """Attempts during faults that did not succeed, by outcome."""
    hung_up: int = 0
    slowest: float = 0.0
    """Seconds that the slowest request took, with its retries."""
    paused: bool = False
    hurried: bool = False
    """Whether clients send their next request without a pause."""
    in_flight: int = 0
    """Requests that clients have sent and that have not ended."""
    recent: list[float] = field(default_factory=list)
    """`time.monotonic()` of the end of requests, of the last seconds."""
    faulty_until: float = 0.0
    """`time.monotonic()` until which a fault affects requests; infinite while there is one."""

    @property
    def total(self) -> int:
        return self.ended.total() + self.hung_up + self.lost.total()

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Let requests be affected until the block ends, and for AFTERMATH seconds."""
        self.faulty_until = math.inf
        try:
            yield
        finally:
            self.faulty_until = time.monotonic() + AFTERMATH

    def busy(self) -> int:
        """Return the number of requests that the service may be busy with, those of clients that hung up included."""
        since = time.monotonic() - RECENT
        return self.in_flight + sum(at > since for at in tuple(self.recent))

    async def client(self, client: httpx.AsyncClient, source: random.Random) -> None:
        """Send one random request, then pause."""
        if self.paused:
            await asyncio.sleep(0.05)
            return
        kind = source.choice([*self.kinds])
        request = source.choice(self.kinds[kind])
        self.in_flight += 1
        try:
            if source.random() < HANG_UP_SHARE:
                await self._hang_up(client, request, source.uniform(0, HANG_UP_SECONDS))
            else:
                await self._send(client, kind, request)
        finally:
            now = time.monotonic()
            self.recent = [at for at in self.recent if at > now - RECENT] + [now]
            self.in_flight -= 1
        resume_at = time.monotonic() + source.expovariate(1 / self.pause)
        while not (self.hurried or self.paused) and time.monotonic() < resume_at:
            await asyncio.sleep(min(0.2, max(0.0, resume_at - time.monotonic())))

    async def _hang_up(self, client: httpx.AsyncClient, request: ExpectedRequest, seconds: float) -> None:
        self.hung_up += 1
        try:
            async with asyncio.timeout(seconds):
                await request.send(client)
        except (TimeoutError, httpx.TransportError):  # httpx has closed the connection
            pass

    async def _send(self, client: httpx.AsyncClient, kind: str, request: ExpectedRequest) -> None:
        started_at = time.monotonic()
        while (outcome := await self.attempt(client, request)) != CORRECT:
            if outcome.startswith("final "):
                self._lose(kind, outcome.removeprefix("final "))
                return
            if time.monotonic() - started_at > TIMEOUT:
                self._lose(kind, f"no success within {TIMEOUT:g} s")
                return
            self.retries[outcome] += 1
            await asyncio.sleep(0.1)
        self.ended[kind] += 1
        self.slowest = max(self.slowest, time.monotonic() - started_at)

    def _lose(self, kind: str, problem: str) -> None:
        self.lost[kind] += 1
        self.problems[kind][problem] += 1

    async def attempt(self, client: httpx.AsyncClient, request: ExpectedRequest) -> str:
        """Return the outcome of one attempt: CORRECT, an error that a fault explains, or `final` and what was wrong."""
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                response = await request.send(client)
        except (TimeoutError, httpx.TimeoutException):
            return "final no response"
        except httpx.TransportError as error:
            outcome = type(error).__name__
        else:
            if response.status_code == 200:
                digest = response.headers.get("x-model-digest", "")
                known = self.expected.get(digest, {}).get(request)
                return CORRECT if comparable_body(response) == known else f"final {WRONG_BYTES}"
            outcome = f"status {response.status_code}"
            if response.status_code not in (429, 503) or "retry-after" not in response.headers:
                return f"final {outcome}"
        return outcome if self.faulty_until >= started_at else f"final {outcome} without a fault"


async def known_responses(url: str, requests: Iterable[ExpectedRequest]) -> dict[str, dict[ExpectedRequest, bytes]]:
    """Send requests one after the other. Returns their bodies by X-Model-Digest, as `Traffic` takes them."""
    known = defaultdict[str, dict[ExpectedRequest, bytes]](dict)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT) as client:
        for request in requests:
            response = await request.send(client)
            response.raise_for_status()
            known[response.headers.get("x-model-digest", "")][request] = comparable_body(response)
    return known
