"""A load generator for measurements: raw HTTP/1.1 over keep-alive connections in one thread.

It parses no more of a response than it needs, because it shares the machine with the server that it measures. Clients
that compare every byte are in `harness/clients.py`.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import uvloop

DRAIN_SECONDS = 4.0
"""How long requests in flight at the end may still take."""


@dataclass
class LoadResult:
    """The responses to one client, or to several."""

    seconds: float
    """Duration of the measurement."""
    latencies: list[float] = field(default_factory=list)
    """Seconds that each successful response took."""
    not_modified: int = 0
    """Number of these responses with status 304."""
    failed: int = 0
    """Other responses, and connections that the server closed."""

    @property
    def rate(self) -> float:
        """Successful responses per second."""
        return len(self.latencies) / self.seconds


class _Client(asyncio.Protocol):
    """One connection that sends a request, waits for the response and sends the next request."""

    def __init__(
        self, request: Callable[[], bytes], result: LoadResult, done: asyncio.Event, start: float, end: float
    ) -> None:
        self.request, self.result, self.done, self.start, self.end = request, result, done, start, end
        self.buffer = bytearray()
        self.expected_size = -1
        """Bytes of the response, or -1 until its head is complete."""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.expected_size < 0 and not self._parse_head():
            return
        if len(self.buffer) >= self.expected_size:
            self._finish_response()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.result.failed += 1
        self.done.set()

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self.transport.close()

    def _send(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(self.request())

    def _parse_head(self) -> bool:
        """Read status and length. Returns False while the head is incomplete."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self.buffer[:end]).lower()
        self.not_modified = head.startswith(b"http/1.1 304")
        self.ok = self.not_modified or head.startswith((b"http/1.1 200", b"http/1.0 200"))
        self.expected_size = end + 4
        if not self.not_modified:
            length = head.index(b"content-length:")
            self.expected_size += int(head[length + 15 :].split(b"\r\n", 1)[0])
        return True

    def _finish_response(self) -> None:
        now = time.perf_counter()
        self.buffer.clear()
        self.expected_size = -1
        if not self.ok:
            self.result.failed += 1
        elif self.start <= now <= self.end:
            self.result.latencies.append(now - self.sent_at)
            self.result.not_modified += self.not_modified
        if now < self.end:
            self._send()
        else:
            self.close()


async def _run(url: str, requests: Sequence[Callable[[], bytes]], seconds: float, warm: float) -> list[LoadResult]:
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    start = time.perf_counter() + warm
    end = start + seconds
    results = [LoadResult(seconds) for _ in requests]
    events = [asyncio.Event() for _ in requests]
    clients: list[_Client] = []
    for request, result, done in zip(requests, results, events, strict=True):
        _, client = await loop.create_connection(
            partial(_Client, request, result, done, start, end), address.hostname or "", address.port or 80
        )
        clients.append(client)
    try:
        async with asyncio.timeout(warm + seconds + DRAIN_SECONDS):
            await asyncio.gather(*(done.wait() for done in events))
    except TimeoutError:
        for client in clients:
            client.close()
    return results


def run_load(url: str, requests: Sequence[Callable[[], bytes]], seconds: float, warm: float = 0.7) -> list[LoadResult]:
    """Run one client for each of `requests` and return its responses during `seconds`.

    A client calls its function for the bytes of the next request as soon as it has the response to the last one.
    Responses in the first `warm` seconds do not count.
    """
    return uvloop.run(_run(url, requests, seconds, warm))


def build_request(path: str, query: str = "", body: str = "", headers: str = "") -> bytes:
    """Return the bytes of a POST. A `body` is JSON; each line of `headers` ends with CRLF."""
    target = f"{path}?{query}" if query else path
    if body:
        headers += "Content-Type: application/json\r\n"
    return f"POST {target} HTTP/1.1\r\nHost: drawbridge\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def merge(results: Sequence[LoadResult]) -> LoadResult:
    """Combine the results of several clients."""
    return LoadResult(
        results[0].seconds,
        [latency for result in results for latency in result.latencies],
        sum(result.not_modified for result in results),
        sum(result.failed for result in results),
    )
