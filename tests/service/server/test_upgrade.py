"""Requests to upgrade the connection are served as HTTP/1.1, with their bodies and with the requests behind them."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from harness.server import Server
from service.api.direct import DirectCall
from service.app import Application
from service.server.transport import NoRecord
from tests.service.listening import listen
from tests.serving import serving, wait_for_accepted

module = pytest.mark.asyncio(loop_scope="module")

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, upgrade\r\nupgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Record(NoRecord):
    """What the protocol tells the journal."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def mark_answered(self, written: int) -> None:
        self.calls.append("answered")

    def invalidate(self) -> None:
        self.calls.append("invalidated")


@pytest_asyncio.fixture(loop_scope="module", params=["direct", "asgi"])
async def port(request: pytest.FixtureRequest, app: Application) -> AsyncIterator[int]:
    """The port of a server that answers directly, and of one that does not."""
    async with listen(app, direct=request.param == "direct") as port:
        yield port


def post(body: bytes, more: bytes = UPGRADE, path: bytes = b"/generate") -> bytes:
    """A POST with a JSON body."""
    headers = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, more, headers, body)


LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def exchange(port: int, *packets: bytes) -> list[tuple[int, bytes]]:
    """Send packets one after another; status and body of each response until the service closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for packet in packets:
        writer.write(packet)
        await asyncio.sleep(0.001)
    responses = []
    while status_line := await asyncio.wait_for(reader.readline(), 30):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"upgrade:" not in head
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        responses.append((int(status_line.split()[1]), await reader.readexactly(length)))
    writer.close()
    return responses


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[DirectCall]:
    """The requests that are answered directly."""
    calls: list[DirectCall] = []
    start = DirectCall.start

    def record(self: DirectCall) -> None:
        calls.append(self)
        start(self)

    monkeypatch.setattr(DirectCall, "start", record)
    return calls


@module
@pytest.mark.parametrize("more", [UPGRADE, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
async def test_the_body_and_the_requests_behind_it_are_read_in_any_packets(
    port: int, client: httpx.AsyncClient, more: bytes, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [b'{"model": "gan", "seed": 1}', b'{"model": "cgan", "digit": 7, "seed": 2}', b'{"n": "nine"}']
    sent = b"".join((post(bodies[0], more), post(bodies[1], b""), post(bodies[2], more), LAST))
    with caplog.at_level(logging.DEBUG):
        responses = await exchange(port, *(sent[at : at + size] for at in range(0, len(sent), size)))
    expected = [await client.post("/generate", content=body) for body in bodies]
    assert [status for status, _ in responses] == [200, 200, 422, 200]
    assert [body for _, body in responses[:3]] == [response.content for response in expected]
    assert "upgrade" not in caplog.text.lower()
    assert "websocket" not in caplog.text.lower()


@module
async def test_it_is_answered_as_fast_as_without_the_header(app: Application, seen: list[DirectCall]) -> None:
    async with listen(app) as port:
        await exchange(port, post(b'{"model": "gan", "seed": 1}'), LAST)
    assert len(seen) == 1


@module
async def test_chunked_bodies_and_requests_without_a_body_are_read(port: int, client: httpx.AsyncClient) -> None:
    chunked = (
        b"POST /generate?model=gan HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n" % UPGRADE
        + b'5\r\n{"see\r\n6\r\nd": 3}\r\n0\r\n\r\n'
    )
    plain = b"GET /generate?model=gan&seed=3 HTTP/1.1\r\nHost: x\r\n%b\r\n" % UPGRADE
    responses = await exchange(port, chunked + plain + chunked + LAST)
    expected = (await client.get("/generate?model=gan&seed=3")).content
    assert responses[:3] == [(200, expected)] * 3


@module
async def test_other_routes_read_their_bodies_too(port: int) -> None:
    body = b'{"model": "nope", "codes": [[0]]}'
    (status, content), _ = await exchange(port, post(body, path=b"/decode"), LAST)
    assert (status, b"nope" in content) == (404, True)


@module
async def test_a_connection_header_keeps_its_other_meanings(port: int) -> None:
    more = UPGRADE.replace(b"Upgrade, ", b"Upgrade, close, ")
    assert [status for status, _ in await exchange(port, post(b'{"model": "gan"}', more))] == [200]


@module
async def test_limits_hold_for_the_headers_of_an_upgrade(port: int) -> None:
    (status, _), *rest = await exchange(port, post(b"{}", UPGRADE + b"X: %b\r\n" % (b"x" * 40_000)))
    assert (status, rest) == (431, [])


@module
@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org:80\r\n\r\nhello",
    ],
)
async def test_http_2_and_tunnels_get_400(port: int, sent: bytes) -> None:
    assert [status for status, _ in await exchange(port, sent)] == [400]
    assert [status for status, _ in await exchange(port, sent[:9], sent[9:])] == [400]


@module
async def test_a_response_before_the_rest_is_parsed_does_not_mark_all_as_answered(app: Application) -> None:
    record = Record()
    async with listen(app, record=record) as port:
        wrong, right = b'{"n": "nine"}', b'{"model": "gan", "seed": 1}'
        responses = await exchange(port, post(wrong) + post(right) + LAST)
    assert [status for status, _ in responses] == [422, 200, 200]
    assert record.calls == ["invalidated", "invalidated", "answered"]


# -- a service process -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights) as server:
        yield server


@pytest.mark.slow
def test_another_worker_completes_an_upgrade_request(server: Server) -> None:
    body = b'{"model": "ddpm", "steps": 600, "seed": 4, "format": "npz"}'
    expected = httpx.post(f"{server.url}/generate", content=body, timeout=60).content
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(post(body) + LAST)
        wait_for_accepted(server, 2)
        (worker,) = server.workers
        os.kill(worker, signal.SIGKILL)
        received = b"".join(iter(partial(connection.recv, 65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert expected in received


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_for_http_2_and_gets_its_image(server: Server) -> None:
    url, body = f"{server.url}/generate", '{"model": "gan", "seed": 5}'
    command = ["curl", "-sS", "--http2", "-H", "Content-Type: application/json", "-d", body, url, "--next"]
    command += ["-sS", "--http2", f"{url}?model=gan&seed=5", "-w", "%{http_version} %{http_code}"]
    result = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    image = httpx.post(url, content=body, timeout=60).content
    assert result == image + image + b"1.1 200"
    assert "upgrade" not in "".join(server.lines).lower()
