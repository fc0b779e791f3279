"""A load generator that costs little of the machine it shares: raw HTTP/1.1 over kept connections, one thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import uvloop

DRAIN_SECONDS = 4.0
"""Seconds that what is under way at the end may still take, before it is given up."""


@dataclass
class LoadResult:
    """What came back."""

    seconds: float
    """For which answers were counted."""
    latencies: list[float] = field(default_factory=list)
    """Seconds that each of them took."""
    not_modified: int = 0
    """Those of them that were 304."""
    failed: int = 0
    """Answers that were neither, and connections that the server dropped."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


class _Client(asyncio.Protocol):
    """One connection: asks, waits for the answer, asks again."""

    def __init__(
        self, request: Callable[[], bytes], found: LoadResult, done: asyncio.Event, since: float, until: float
    ) -> None:
        self.request, self.found, self.done, self.since, self.until = request, found, done, since, until
        self.buffer = bytearray()
        self.missing = -1
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.missing < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.unchanged = head.startswith(b"http/1.1 304")
            self.ok = self.unchanged or head.startswith((b"http/1.1 200", b"http/1.0 200"))
            self.missing = end + 4
            if not self.unchanged:
                at = head.index(b"content-length:")
                self.missing += int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.buffer) >= self.missing:
            now = time.perf_counter()
            self.buffer.clear()
            self.missing = -1
            if not self.ok:
                self.found.failed += 1
            elif self.since <= now <= self.until:
                self.found.latencies.append(now - self.before)
                self.found.not_modified += self.unchanged
            if now < self.until:
                self._ask()
            else:
                self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            self.found.failed += 1
        self.done.set()

    def end(self) -> None:
        """Hang up."""
        self.over = True
        self.transport.close()

    def _ask(self) -> None:
        self.before = time.perf_counter()
        self.transport.write(self.request())


async def _run(url: str, requests: Sequence[Callable[[], bytes]], seconds: float, warm: float) -> list[LoadResult]:
    at = urlsplit(url)
    loop = asyncio.get_running_loop()
    since = time.perf_counter() + warm
    until = since + seconds
    found = [LoadResult(seconds) for _ in requests]
    done = [asyncio.Event() for _ in requests]
    clients: list[_Client] = []
    for request, one, end in zip(requests, found, done, strict=True):
        _, client = await loop.create_connection(
            partial(_Client, request, one, end, since, until), at.hostname or "", at.port or 80
        )
        clients.append(client)
    try:
        async with asyncio.timeout(warm + seconds + DRAIN_SECONDS):
            await asyncio.gather(*(end.wait() for end in done))
    except TimeoutError:
        for client in clients:
            client.end()
    return found


def run_load(url: str, requests: Sequence[Callable[[], bytes]], seconds: float, warm: float = 0.7) -> list[LoadResult]:
    """What came to each of `requests`, a client that asks again once it is answered: in `seconds`, after `warm`."""
    return uvloop.run(_run(url, requests, seconds, warm))


def build_request(path: str, query: str = "", body: str = "") -> bytes:
    """The bytes of a POST, with a JSON body where there is one."""
    target = f"{path}?{query}" if query else path
    kind = "Content-Type: application/json\r\n" if body else ""
    return f"POST {target} HTTP/1.1\r\nHost: drawbridge\r\n{kind}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def merge(found: Sequence[LoadResult]) -> LoadResult:
    """All clients as one."""
    return LoadResult(
        found[0].seconds,
        [each for one in found for each in one.latencies],
        sum(one.not_modified for one in found),
        sum(one.failed for one in found),
    )
