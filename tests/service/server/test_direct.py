"""Direct responses equal those over ASGI, and they end, count and are logged alike."""

import asyncio
import gc
import io
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from uvicorn.server import ServerState

from harness.scraping import metric_value, parse_metrics
from service.api.direct import DirectCall
from service.app import TELEMETRY_FLUSH_SECONDS, Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.engine.loops import ThreadEngine
from service.engine.request import Ticket, noop
from service.server import journal
from service.server.protocol import MAX_DIRECT_BODY, HttpProtocol, uvicorn_config
from service.server.transport import JournaledReader
from service.settings import Settings
from tests.service.conftest import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

Responses = list[int]
Clients = tuple[httpx.AsyncClient, httpx.AsyncClient]


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> Responses:
    """The statuses of direct responses."""
    statuses: Responses = []
    respond = HttpProtocol.respond

    def recorded(self: HttpProtocol, status: int, *args: Any, **options: Any) -> None:
        statuses.append(status)
        respond(self, status, *args, **options)

    monkeypatch.setattr(HttpProtocol, "respond", recorded)
    return statuses


@asynccontextmanager
async def listening(app: Application, *, direct: bool = True, **options: Any) -> AsyncIterator[str]:
    """The URL of connections to `app` as a worker serves them, with or without direct responses."""
    config, state = uvicorn_config(app, app.settings, **options), ServerState()
    config.load()

    def protocol() -> JournaledReader:
        descriptor = journal.create()
        record = journal.Journal(descriptor)
        os.close(descriptor)
        return JournaledReader(HttpProtocol(config, state, {}, record, noop, app, direct=direct), record)

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(app: Application) -> AsyncIterator[Clients]:
    """Clients of the same application, with direct responses and without."""
    async with (
        listening(app) as direct,
        listening(app, direct=False) as asgi,
        httpx.AsyncClient(base_url=direct, timeout=60) as direct_client,
        httpx.AsyncClient(base_url=asgi, timeout=60) as asgi_client,
    ):
        yield direct_client, asgi_client


@pytest_asyncio.fixture(loop_scope="module")
async def client(clients: Clients) -> httpx.AsyncClient:
    """A client that gets direct responses."""
    return clients[0]


async def exchange(client: httpx.AsyncClient, *packets: bytes) -> bytes:
    """Send packets on a connection of their own, and return all that comes back until it is closed."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await asyncio.sleep(0.02)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


def request_bytes(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A request whose connection is closed after the response."""
    lines = [f"{method} {target} HTTP/1.1", "Host: drawbridge", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def comparable(response: bytes) -> bytes:
    """A response without the parts that differ each time: times and generated request ids."""
    response = re.sub(rb"(dur=)[\d.]+", rb"\1", response)
    return re.sub(rb"(x-request-id: )[0-9a-f]{16}\b", rb"\1", response)


# -- equality with ASGI ------------------------------------------------------------------------------------------------

JSON = {"Content_Type": "application/json"}
JSON_UTF8 = {"Content_Type": "application/json; charset=utf-8"}
CASES: dict[str, tuple[int, bytes]] = {
    "query": (200, request_bytes("POST", "/generate?model=gan&seed=5")),
    "GET": (200, request_bytes("GET", "/generate?model=gan&seed=5")),
    "version": (200, request_bytes("GET", "/generate?model=gan@&seed=5")),
    "random seed": (200, request_bytes("POST", "/generate?model=gan")),
    "default model": (200, request_bytes("GET", "/generate?digit=7&seed=8")),
    "container": (200, request_bytes("GET", "/generate?model=cgan&digit=3&digit=4&first=2&n=5&seed=1&format=json")),
    "options": (200, request_bytes("GET", "/generate?model=ddpm&steps=3&sampler=ddim&n=4&guidance=2&seed=1")),
    "16 images": (200, request_bytes("POST", "/generate?model=vae&n=16&seed=9&priority=bulk&format=npz")),
    "Accept": (200, request_bytes("GET", "/generate?model=gan&seed=5", Accept="image/webp")),
    "X-Timeout": (200, request_bytes("POST", "/generate?model=gan&seed=5", X_Timeout="30", X_Request_ID="lesson-7")),
    "proxied": (200, request_bytes("POST", "/generate?model=gan&seed=5", X_Forwarded_For="203.0.113.7")),
    "upgrade": (200, request_bytes("POST", "/generate?model=gan&seed=5", Upgrade="h2c")),
    "HTTP/1.0": (200, b"GET /generate?model=gan&seed=5 HTTP/1.0\r\n\r\n"),
    "absolute URI": (200, request_bytes("GET", "http://x/generate?model=gan&seed=5")),
    "escaped path": (200, request_bytes("GET", "/gener%61te?model=gan&seed=5")),
    "JSON": (200, request_bytes("POST", "/generate", b'{"model": "gan", "seed": 5, "n": 2}', **JSON)),
    "JSON and query": (200, request_bytes("POST", "/generate?model=cgan", b'{"digit": [3, 4], "n": 2}', **JSON)),
    "JSON without a type": (200, request_bytes("POST", "/generate?model=gan", b'{"seed": 5}')),
    "JSON with a charset": (200, request_bytes("POST", "/generate?model=gan", b"{}", **JSON_UTF8)),
    "unknown model": (404, request_bytes("POST", "/generate?model=nope")),
    "unknown model in JSON": (404, request_bytes("POST", "/generate", b'{"model": "nope"}', **JSON)),
    "format": (406, request_bytes("GET", "/generate?model=gan", Accept="text/html")),
    "large for the limit": (413, request_bytes("POST", "/generate?model=gan", b" " * 3500)),
    "text": (415, request_bytes("POST", "/generate?model=gan", b"seed=5", Content_Type="text/plain")),
    "neither JSON nor a type": (415, request_bytes("POST", "/generate?model=gan", b"seed=5")),
    "GET with a body": (415, request_bytes("GET", "/generate?model=gan", b"{}", **JSON)),
    "invalid parameters": (422, request_bytes("POST", "/generate?model=gan&n=0&first=-1&colour=red")),
    "two seeds": (422, request_bytes("POST", "/generate?model=gan&seed=3&seed=4")),
    "invalid JSON": (422, request_bytes("POST", "/generate?model=gan", b"{", **JSON)),
    "strings in JSON": (422, request_bytes("POST", "/generate?model=gan", b'{"seed": "5"}', **JSON)),
    "in the query and in JSON": (422, request_bytes("POST", "/generate?model=gan", b'{"model": "gan"}', **JSON)),
    "deadline": (504, request_bytes("POST", "/generate?model=gan&timeout=1e-9")),
}  # fmt: skip
"""Requests that get a direct response, with its status."""


@pytest.fixture
def known_seed(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random seed is the same."""
    monkeypatch.setattr(app.state.service, "new_seed", lambda: 4711)


@pytest.mark.usefixtures("known_seed")
@pytest.mark.parametrize("name", CASES)
async def test_direct_and_asgi_responses_are_equal(
    app: Application, clients: Clients, direct: Responses, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(app, "settings", app.settings.model_copy(update={"max_body_bytes": 3000}))
    status, request = CASES[name]
    await exchange(clients[1], request_bytes("POST", "/generate?model=gan"))  # measures the model's rate
    direct_response, asgi_response = [await exchange(client, request) for client in clients]
    assert direct == [status]
    assert asgi_response.startswith(b"HTTP/1.1 %d " % status)
    assert comparable(direct_response) == comparable(asgi_response)


@pytest.mark.usefixtures("known_seed")
async def test_a_cached_request_has_the_same_response(clients: Clients, direct: Responses) -> None:
    for name in ("query", "random seed", "container", "JSON"):
        request = CASES[name][1]
        responses = [comparable(await exchange(client, request)) for client in (*clients, *clients)]
        assert len(set(responses)) == 1, name
    assert direct == [200] * 8


@pytest.mark.parametrize("split", [1, 40, -30, -1])
async def test_a_request_in_two_packets_has_the_same_response(clients: Clients, direct: Responses, split: int) -> None:
    request = CASES["JSON"][1]
    expected = comparable(await exchange(clients[1], request))
    assert comparable(await exchange(clients[0], request[:split], request[split:])) == expected
    assert comparable(await exchange(clients[1], request[:split], request[split:])) == expected
    assert direct == [200]


async def test_a_matching_etag_gives_304(clients: Clients, direct: Responses) -> None:
    first = await clients[0].get("/generate?model=gan&seed=3")
    assert first.status_code == 200
    for url, etag in (("/generate?model=gan&seed=3", first.headers["etag"]), ("/generate?model=gan&seed=4", "*")):
        request = request_bytes("GET", url, If_None_Match=etag)
        direct_response, asgi_response = [await exchange(client, request) for client in clients]
        assert direct_response.startswith(b"HTTP/1.1 304 ")
        assert direct_response.endswith(b"\r\n\r\n")
        assert comparable(direct_response) == comparable(asgi_response)
    assert direct == [200, 304, 304]


# -- requests that need ASGI -------------------------------------------------------------------------------------------


async def chunked() -> AsyncIterator[bytes]:
    """A body of unknown length."""
    yield b'{"n": '
    yield b"2}"


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/generate?model=gan&seed=3", {"content": chunked}),
        ("/generate?model=gan&seed=3", {"json": {"n": 2}, "headers": {"Expect": "100-continue"}}),
        ("/generate?model=gan&seed=3", {"files": {"n": (None, "2")}}),
        ("/generate?model=gan&seed=3", {"content": b'{"n": 2%s}' % (b" " * MAX_DIRECT_BODY)}),
        ("/generate?model=gan&n=17&seed=3", {}),
        ("/generate?model=gan&n=17&seed=3&format=npz", {}),
        ("/generate", {"json": {"model": "gan", "n": 17, "seed": 3, "format": "zip"}}),
        ("/generate?model=gan&n=2&seed=3&format=events", {}),
        ("/generate?model=gan&n=2&seed=3", {"headers": {"Accept": "text/event-stream"}}),
        ("/interpolate?model=gan&seed=3&seed=4", {}),
        ("/v1/images/generations", {"json": {"model": "gan", "prompt": "", "seed": 3}}),
    ],
    ids=[
        "chunked", "expect", "form", "long body", "17 images", "stream", "stream by JSON", "events",
        "events by Accept", "interpolation", "OpenAI",
    ],
)  # fmt: skip
async def test_other_requests_get_their_response_over_asgi(
    clients: Clients, direct: Responses, path: str, options: dict[str, Any]
) -> None:
    def fresh() -> dict[str, Any]:
        return {name: value() if callable(value) else value for name, value in options.items()}

    for _ in range(2):
        direct_response, asgi_response = [await client.post(path, **fresh()) for client in clients]
        assert not direct
        assert direct_response.status_code == asgi_response.status_code == 200
        for name in ("content-type", "transfer-encoding", "content-length", "content-location"):
            assert direct_response.headers.get(name) == asgi_response.headers.get(name)
        if "event-stream" not in direct_response.headers["content-type"] and not path.startswith("/v1"):
            assert direct_response.content == asgi_response.content


async def test_pipelined_requests_get_their_responses_in_order(client: httpx.AsyncClient, direct: Responses) -> None:
    expected = [(await client.get(f"/generate?model=gan&seed={seed}")).content for seed in (1, 2, 3, 4)]
    direct.clear()
    lines = [f"GET /generate?model=gan&seed={seed} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n" for seed in (1, 2, 3)]
    last = "GET /generate?model=gan&seed=4 HTTP/1.0\r\nAccept: */*\r\n"
    received = await exchange(client, "\r\n".join([*lines, last, ""]).encode())
    assert direct == [200], "only the first is not behind another request"
    position = 0
    for content in expected:
        position = received.index(content, position) + len(content)
    assert position == len(received)
    assert received.count(b"HTTP/1.1 200 OK") == 4


async def test_a_pipelined_request_behind_a_json_body_is_not_part_of_it(client: httpx.AsyncClient) -> None:
    body = b'{"model": "gan", "seed": 1}'
    first = request_bytes("POST", "/generate", body, **JSON).replace(b"Connection: close\r\n", b"")
    received = await exchange(client, first + request_bytes("GET", "/livez"))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.endswith(b'{"status":"alive"}')


# -- clients behind proxies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct_responses", [True, False])
@pytest.mark.parametrize(
    ("trusted", "owner"), [("127.0.0.1", "203.0.113.7"), ("192.0.2.1", "127.0.0.1")], ids=["trusted", "untrusted"]
)
async def test_only_a_trusted_proxy_names_the_client(
    app: Application,
    direct: Responses,
    monkeypatch: pytest.MonkeyPatch,
    trusted: str,
    owner: str,
    direct_responses: bool,
) -> None:
    owners: list[str] = []
    submit = app.state.service.engine.submit

    def recorded(request: Any, on_update: Any = noop, owner: str = "") -> Ticket:
        owners.append(owner)
        return submit(request, on_update, owner)

    monkeypatch.setattr(app.state.service.engine, "submit", recorded)
    async with (
        listening(app, direct=direct_responses, forwarded_allow_ips=trusted) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        for request in ({"params": {"model": "gan"}}, {"json": {"model": "gan"}}):
            assert (await client.post("/generate", headers=headers, **request)).status_code == 200
        assert (await client.post("/generate?model=gan")).status_code == 200
    assert owners == [owner, owner, "127.0.0.1"]
    assert len(direct) == 3 * direct_responses


# -- bodies ------------------------------------------------------------------------------------------------------------


async def test_a_body_that_is_too_slow_gets_408(
    app: Application, clients: Clients, direct: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "settings", app.settings.model_copy(update={"body_timeout": 0.2}))
    request = request_bytes("POST", "/generate", b'{"model": "gan", "seed": 1}', **JSON)[:-5]
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    direct_response, asgi_response = [await exchange(client, request, b" ", b" ") for client in clients]
    assert loop.time() - started_at < 10
    assert direct_response.startswith(b"HTTP/1.1 408 ")
    assert b"urn:drawbridge:problem:body-too-slow" in direct_response
    assert b"\r\nconnection: close\r\n" in direct_response
    assert comparable(direct_response).partition(b"\r\n\r\n")[2] == asgi_response.partition(b"\r\n\r\n")[2]
    assert direct == [408]


async def test_a_disconnect_before_the_end_of_the_body_leaves_nothing(
    app: Application, client: httpx.AsyncClient, direct: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    accepted = app.state.service.engine.ended["accepted"]
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(request_bytes("POST", "/generate", b'{"model": "gan"}', **JSON)[:-1])
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    assert (await client.get("/livez")).status_code == 200
    assert app.state.service.engine.ended["accepted"] == accepted
    assert not direct
    assert not caplog.records


@pytest.mark.parametrize("length", [50_001, 10**9])
async def test_a_body_that_is_too_large_gets_413(clients: Clients, length: int) -> None:
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode()
    direct_response, asgi_response = [await exchange(client, head, b" " * 1000) for client in clients]
    assert direct_response.startswith(b"HTTP/1.1 413 ")
    assert comparable(direct_response) == comparable(asgi_response)


# -- the ends of requests ----------------------------------------------------------------------------------------------


async def test_a_disconnect_frees_the_batch_slots(app: Application, client: httpx.AsyncClient) -> None:
    engine = app.state.service.engine
    cancelled = engine.ended["cancelled"]
    for request in ({"params": {"model": "ddpm", "steps": 900, "n": 16}}, {"json": {"model": "ddpm", "steps": 900}}):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/generate", timeout=0.3, **request)
        assert (await client.post("/generate?model=gan", timeout=30)).status_code == 200  # one engine step later
        assert engine.outstanding == 0
    assert engine.ended["cancelled"] == cancelled + 2
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)
    samples = parse_metrics((await client.get("/metrics")).text)
    assert metric_value(samples, "requests_total", route="/generate", model="ddpm", code="499") == 2


def failing(*_: object, **__: object) -> None:
    raise RuntimeError("secret reason")


@pytest.mark.parametrize("request_", [{"params": {"model": "gan"}}, {"json": {"model": "gan"}}])
async def test_refused_and_failed_requests_get_their_problem(
    app: Application,
    client: httpx.AsyncClient,
    direct: Responses,
    monkeypatch: pytest.MonkeyPatch,
    request_: dict[str, Any],
) -> None:
    service = app.state.service
    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "queue_images", 0)
        full = await client.post("/generate", **request_)
        problem(full, 429, "queue-is-full")
        assert int(full.headers["retry-after"]) >= 1
    with monkeypatch.context() as patch:
        patch.setattr(service.catalog.models["gan"].runner, "advance", failing)
        assert "secret reason" in problem(await client.post("/generate", **request_), 500, "draw-failed")
    with monkeypatch.context() as patch:
        patch.setattr("service.api.direct.encode_ticket", failing)
        assert "secret reason" not in problem(await client.post("/generate", **request_), 500, "problem")
    assert (await client.post("/generate", **request_)).status_code == 200
    assert direct == [429, 500, 500, 200]


async def test_a_draining_service_finishes_accepted_requests_and_closes(
    app: Application, client: httpx.AsyncClient, direct: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = asyncio.create_task(client.post("/generate?model=ddpm&steps=200&seed=1"))
    while not app.state.service.engine.outstanding:
        await asyncio.sleep(0)
    monkeypatch.setattr(app, "draining", True)
    monkeypatch.setattr(app.state.service.engine, "stopping", True)
    refused = await client.post("/generate?model=gan&seed=1")
    problem(refused, 503, "unavailable")
    delivered = await accepted
    assert delivered.status_code == 200
    assert {response.headers["connection"] for response in (refused, delivered)} == {"close"}
    assert direct == [503, 200]


# -- keys and telemetry ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def with_key(settings: Settings, folder: Path, **limits: Any) -> AsyncIterator[tuple[Application, str, str]]:
    """An application that requires a key, its URL, and the key."""
    file = folder / "keys.toml"
    secret = keys.add(file, "physics", limits)
    app = create_app(settings, authenticator=Authenticator(keys.read(file), folder, 0, 1))
    async with app.router.lifespan_context(app), listening(app) as url:
        yield app, url, secret


async def test_direct_requests_are_authorized_counted_and_logged(
    settings: Settings, tmp_path: Path, direct: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # until the requests of other tests are logged
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    async with (
        with_key(settings, tmp_path, images="5/day", concurrent=2) as (app, url, secret),
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=30) as client,
    ):
        responses = [await client.get("/generate?model=gan&seed=1&n=2")]
        responses.append(await client.post("/generate", json={"model": "gan", "seed": 1, "n": 2}))
        assert [response.status_code for response in responses] == [200, 200]
        assert [response.headers["ratelimit"][:12] for response in responses] == ['"images";r=3', '"images";r=1']
        assert responses[0].headers["cache-control"].startswith("private")
        problem(await client.get("/generate?model=gan&seed=1&n=2"), 429, "quota-used-up")
        wrong_key = {"Authorization": "Bearer db_wrong"}
        problem(await client.get("/generate?model=gan&seed=1&n=2", headers=wrong_key), 401, "unauthorized")
        assert direct == [200, 200, 429, 401]
        assert app.authenticator is not None
        assert app.authenticator.counters["physics"].concurrent_requests() == 0
        await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)
        samples = parse_metrics(app.metrics.render([]).decode())
        for code, model, count in (("200", "gan", 2), ("401", "", 1), ("429", "gan", 1)):
            assert metric_value(samples, "requests_total", route="/generate", model=model, code=code) == count
    lines = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 200, 429, 401]
    assert lines[1]["key"] == "physics"
    assert {"queue_ms", "device_ms", "encode_ms", "model", "digest", "seed", "images", "batch"} <= lines[1].keys()


async def test_pipelined_requests_are_not_concurrent(settings: Settings, tmp_path: Path, direct: Responses) -> None:
    async with with_key(settings, tmp_path, concurrent=1) as (_, url, secret):
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        request = f"GET /generate?model=gan&seed=1 HTTP/1.1\r\nX-API-Key: {secret}\r\nHost: x\r\n"
        writer.write(f"{request}\r\n".encode())
        received = await asyncio.wait_for(reader.readuntil(b"IEND"), 30)
        writer.write((f"{request}\r\n" * 3 + f"{request}Connection: close\r\n\r\n").encode())
        received += await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert received.count(b"HTTP/1.1 200 OK") == 5
    assert direct == [200, 200], "those behind another request get their response over ASGI"


# -- the engine --------------------------------------------------------------------------------------------------------


async def test_an_engine_on_a_thread_gives_the_same_bytes_and_an_application_can_restart(
    settings: Settings, clients: Clients, direct: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"/generate?model=cgan&digit=7&seed={seed}" for seed in range(20)]
    expected = [(await clients[1].post(url)).content for url in urls]
    monkeypatch.setattr("service.engine.setup.EventLoopEngine", ThreadEngine)
    app = create_app(settings)
    for _ in range(2):
        async with (
            app.router.lifespan_context(app),
            listening(app) as url,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            direct.clear()
            responses = await asyncio.gather(*map(client.post, urls))
            assert [response.content for response in responses] == expected
            assert direct == [200] * 20
    assert metric_value(parse_metrics(app.metrics.render([]).decode()), "accepted_total") == 2 * 20


@pytest.mark.parametrize("send", [
    lambda client, seed: client.get(f"/generate?model=gan&seed={seed}"),
    lambda client, seed: client.post("/generate", json={"model": "gan", "seed": seed}),
], ids=["query", "JSON"])  # fmt: skip
async def test_finished_requests_leave_no_reference_cycles(
    app: Application, direct: Responses, send: Callable[[httpx.AsyncClient, int], Any]
) -> None:
    async with listening(app) as url:
        gc.collect()
        gc.disable()
        try:
            async with httpx.AsyncClient(base_url=url) as client:
                for seed in range(4):
                    await send(client, seed)
            assert direct == [200] * 4
            await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # the log holds the requests until then
            assert not [found for found in gc.get_objects() if isinstance(found, Ticket | DirectCall | HttpProtocol)]
        finally:
            gc.enable()


async def test_concurrent_clients_share_batches_and_get_their_own_images(
    client: httpx.AsyncClient, direct: Responses
) -> None:
    alone = [(await client.get(f"/generate?model=gan&seed={seed}")).content for seed in range(40)]
    direct.clear()
    queries = [client.get(f"/generate?model=gan&seed={seed}") for seed in range(0, 40, 2)]
    bodies = [client.post("/generate", json={"model": "gan", "seed": seed}) for seed in range(1, 40, 2)]
    responses = await asyncio.gather(*queries, *bodies)
    assert direct == [200] * 40
    assert [response.content for response in responses] == alone[::2] + alone[1::2]
    assert max(int(response.headers["x-batch"]) for response in responses) > 1
