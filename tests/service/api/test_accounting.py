"""How requests are logged, counted and charged (docs/deployment.md, Authentication and Observability)."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from harness.scraping import metric_value, parse_metrics
from harness.server import Server
from service.app import TELEMETRY_FLUSH_SECONDS, Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator, UsageCounter, release_worker
from service.codecs.archives import NpzEncoder
from service.settings import Settings
from tests.service.conftest import problem
from tests.service.listening import listen
from tests.serving import serving

IMAGES = 1000
"""Images that the key may request."""


@pytest.fixture
def log() -> list[dict[str, Any]]:
    """The fields of the log lines of finished requests."""
    return []


@pytest.fixture(scope="module")
def few_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the weights that these tests need."""
    root = tmp_path_factory.mktemp("few")
    for name in ("ddpm", "gan", "pca"):
        shutil.copytree(weights / name, root / name)
    return root


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The path of a key file."""
    return tmp_path / "keys.toml"


@pytest.fixture
def secret(key_file: Path) -> str:
    """A key in the file."""
    return keys.add(key_file, "lab", {"images": f"{IMAGES}/day"})


@pytest_asyncio.fixture
async def app(
    settings: Settings,
    few_weights: Path,
    key_file: Path,
    secret: str,
    log: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Application]:
    """An application that requires the key."""
    known = keys.read(key_file)
    assert known.find(secret) is not None
    authenticator = Authenticator(known, key_file.parent, 0, 1)
    app = create_app(settings.model_copy(update={"weights": few_weights}), authenticator=authenticator)
    monkeypatch.setattr(app.log, "write", lambda requests: log.extend(request.log_fields() for request in requests))
    async with app.router.lifespan_context(app):
        yield app


@pytest_asyncio.fixture(params=["direct", "asgi"])
async def client(request: pytest.FixtureRequest, secret: str, app: Application) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key, of a server that responds directly and of one that does not."""
    headers = {"X-API-Key": secret}
    async with (
        listen(app, direct=request.param == "direct") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client,
    ):
        yield client


async def recorded(app: Application, log: list[dict[str, Any]], status: int) -> dict[str, Any]:
    """The log line of the only request that generated images, after a check that it is counted likewise."""
    while not (lines := [line for line in log if "images" in line]):
        await asyncio.sleep(TELEMETRY_FLUSH_SECONDS)
    (line,) = lines
    metrics = parse_metrics(app.metrics.render([]).decode())
    labels = {"route": line["route"], "model": line["model"], "code": str(status)}
    assert (line["status"], metric_value(metrics, "requests_total", **labels)) == (status, 1)
    return line


async def charged(client: httpx.AsyncClient) -> int:
    """Images that the key is charged for."""
    policy = (await client.get("/models")).headers["ratelimit"]
    match = re.search(r'"images";r=([0-9]+)', policy)
    assert match is not None
    return IMAGES - int(match[1])


# -- disconnects -------------------------------------------------------------------------------------------------------

STREAMS = [
    ("/generate", {"model": "ddpm", "n": 64, "steps": 50, "format": "npz"}),
    ("/generate", {"model": "ddpm", "n": 2, "steps": 500, "format": "events"}),
    ("/interpolate", {"model": "ddpm", "seed": [1, 2], "frames": 64, "steps": 50, "format": "zip"}),
    ("/v1/images/generations", {"model": "ddpm", "prompt": "any", "n": 16, "num_inference_steps": 50, "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_disconnect_during_a_streamed_response_counts_as_499(
    app: Application, client: httpx.AsyncClient, log: list[dict[str, Any]], path: str, body: dict[str, Any]
) -> None:
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        await anext(response.aiter_raw())
    line = await recorded(app, log, 499)
    assert (line["problem"], line["ended"]) == ("client-gone", "cancelled")
    assert await charged(client) == line["images"]


async def test_a_disconnect_while_the_rest_is_sent_counts_as_499(
    secret: str, app: Application, log: list[dict[str, Any]]
) -> None:
    async with listen(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        query = "model=gan&n=64&format=json"
        writer.write(f"GET /generate?{query} HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n")
        writer.transport.abort()
        line = await recorded(app, log, 499)
    assert line["route"] == "/generate"


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_complete_stream_counts_as_200(
    client: httpx.AsyncClient, log: list[dict[str, Any]], path: str, body: dict[str, Any]
) -> None:
    short = {name: 2 if "steps" in name else value for name, value in body.items()}
    for _ in range(3):
        assert (await client.post(path, json=short)).status_code == 200
    await asyncio.sleep(3 * TELEMETRY_FLUSH_SECONDS)
    assert {line["status"] for line in log} == {200}


@pytest.mark.parametrize("path", ["/generate", "/v2/models/ddpm/infer"])
async def test_a_disconnect_before_the_response_counts_as_499_and_is_charged(
    app: Application, client: httpx.AsyncClient, log: list[dict[str, Any]], path: str
) -> None:
    body: dict[str, Any] = {"model": "ddpm", "n": 16, "steps": 900}
    if path.startswith("/v2"):
        inputs = [{"name": "n", "datatype": "INT64", "shape": [1], "data": [16]}]
        body = {"inputs": inputs, "parameters": {"steps": 900}}
    with pytest.raises(httpx.ReadTimeout):
        await client.post(path, json=body, timeout=0.2)
    line = await recorded(app, log, 499)
    assert (line["problem"], line["images"]) == ("client-gone", 16)
    assert await charged(client) == 16


# -- failures ----------------------------------------------------------------------------------------------------------


async def fail_engine(app: Application) -> None:
    """Let all requests of the engine fail, as an unexpected error does."""
    engine = app.state.service.engine
    while not engine.outstanding:
        await asyncio.sleep(0)
    engine.recover(RuntimeError("a bug"))


async def test_images_of_failed_requests_are_refunded(app: Application, client: httpx.AsyncClient) -> None:
    request = asyncio.create_task(client.post("/generate?model=ddpm&n=16&steps=900"))
    await fail_engine(app)
    response = await request
    problem(response, 500, "draw-failed")
    assert response.headers["ratelimit"].startswith(f'"images";r={IMAGES};')
    assert await charged(client) == 0
    assert (await client.post("/generate?model=gan&n=5")).status_code == 200
    assert await charged(client) == 5


async def test_images_past_their_deadline_are_refunded(
    app: Application, client: httpx.AsyncClient, log: list[dict[str, Any]]
) -> None:
    problem(await client.post("/generate?model=ddpm&n=64&steps=1000&timeout=0.2"), 504, "too-late")
    assert await charged(client) == 0
    assert (await recorded(app, log, 504))["problem"] == "too-late"


async def test_images_that_cannot_be_encoded_are_refunded(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NpzEncoder, "begin", _broken)
    problem(await client.post("/generate?model=gan&n=3&format=npz"), 500)
    assert await charged(client) == 0


async def test_both_parts_of_an_interpolation_of_uploads_are_refunded(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = (await client.get("/generate?model=gan&seed=1")).content
    before = await charged(client)
    files = [("image", ("a.png", image)), ("image", ("b.png", image))]
    monkeypatch.setattr(NpzEncoder, "begin", _broken)
    response = await client.post("/interpolate?model=pca&frames=5&format=npz", files=files)
    problem(response, 500)
    assert await charged(client) == before


@pytest.mark.parametrize("format_", ["npz", "events"])
async def test_a_stream_that_fails_counts_as_failed_and_refunds_the_images_that_were_not_sent(
    app: Application, client: httpx.AsyncClient, log: list[dict[str, Any]], format_: str
) -> None:
    query = {"model": "ddpm", "n": 64, "steps": 30, "format": format_}
    async with client.stream("POST", "/generate", params=query) as response:
        parts = response.aiter_raw()
        received = b""
        while len(received) < 10_000 and b"event: image" not in received:
            received += await anext(parts)
        app.state.service.engine.recover(RuntimeError("a bug"))
        try:
            async for part in parts:
                received += part
        except httpx.RemoteProtocolError:
            assert format_ == "npz"
        else:
            assert b"event: error" in received
    line = await recorded(app, log, 500)
    assert (line["problem"], line["ended"]) == ("draw-failed", "failed")
    count = await charged(client)
    assert 0 < count < 64
    if format_ == "events":
        assert count == received.count(b"event: image")


async def test_an_unexpected_error_in_a_stream_counts_as_500(
    app: Application, client: httpx.AsyncClient, log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NpzEncoder, "end", _broken)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/generate?model=gan&n=40&format=npz")
    assert (await recorded(app, log, 500))["problem"] == "problem"
    assert await charged(client) == 40


def _broken(*_: object) -> bytes:
    raise RuntimeError("a bug")


async def test_a_request_without_images_costs_none(client: httpx.AsyncClient) -> None:
    assert (await client.head("/generate?model=gan&n=9")).status_code == 200
    etag = (await client.get("/generate?model=gan&seed=1")).headers["etag"]
    assert await charged(client) == 1
    assert (await client.get("/generate?model=gan&seed=1", headers={"If-None-Match": etag})).status_code == 304
    assert (await client.post("/generate?model=gan&n=0")).status_code == 422
    assert await charged(client) == 1


# -- workers -----------------------------------------------------------------------------------------------------------


def connected_worker(server: Server, connection: socket.socket) -> int:
    """The process that serves a connection."""
    port, peer = connection.getpeername()[1], connection.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[2].endswith(f":{peer:04X}"))
    for worker in server.workers:
        for file in Path(f"/proc/{worker}/fd").iterdir():
            if str(file.readlink()) == f"socket:[{inode}]":
                return worker
    raise AssertionError("no worker has the connection")


@pytest.mark.slow
def test_a_request_that_another_worker_takes_over_is_charged_once(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    secret = keys.add(file, "lab", {"requests": "1/day", "images": "3/day", "concurrent": 1})
    monitor = keys.add(file, "monitor", {})
    with serving(weights, workers=2, keys=file) as server:
        url = httpx.URL(server.url)
        query = "model=ddpm&n=3&steps=400&seed=1&format=npz"
        with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
            head = f"GET /generate?{query} HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            headers = {"X-API-Key": monitor}
            while metric_value(parse_metrics(_get(server, "/metrics", headers).text), "accepted_total") < 1:
                pass
            os.kill(connected_worker(server, connection), signal.SIGKILL)
            response = b"".join(iter(partial(connection.recv, 65536), b""))
        status, _, rest = response.partition(b"\r\n")
        assert status == b"HTTP/1.1 200 OK", response
        assert b'ratelimit: "requests";r=0;' in rest
        assert b'"images";r=0;' in rest
        refused = _get(server, f"/generate?{query}", {"X-API-Key": secret})
        assert "1 requests per" in problem(refused, 429)
        while len(lines := [json.loads(line) for line in server.lines if '"key": "lab"' in line]) < 2:
            time.sleep(TELEMETRY_FLUSH_SECONDS)
        assert [line["status"] for line in lines] == [200, 429]


def _get(server: Server, path: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers=headers, timeout=60)


def test_requests_of_a_dead_worker_are_no_longer_in_progress(tmp_path: Path) -> None:
    counters = [UsageCounter(tmp_path / "key-lab", worker, 2) for worker in (0, 1)]
    for counter in counters:
        assert counter.acquire(None)
    release_worker(tmp_path, 1)
    assert [counter.concurrent_requests() for counter in counters] == [1, 1]
