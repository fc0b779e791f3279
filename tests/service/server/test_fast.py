"""The fast path says what the application says, and nothing is lost on it."""

import asyncio
import gc
import io
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from uvicorn.server import ServerState

from harness.scraping import metric_value, parse_metrics
from service.api.direct import Fast
from service.app import TELEMETRY_FLUSH_SECONDS, Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.engine.loops import ThreadEngine
from service.engine.request import Ticket
from service.server import journal, worker
from service.settings import Settings
from tests.service.conftest import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

Begun = list[Fast]


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Requests that went the fast path."""
    found: Begun = []
    begin = Fast.begin

    def counted(self: Fast) -> None:
        found.append(self)
        begin(self)

    monkeypatch.setattr(Fast, "begin", counted)
    return found


@asynccontextmanager
async def listening(app: Application, *, fast: bool) -> AsyncIterator[str]:
    """The URL of a worker's connections to `app`, with the fast path or without."""
    config, state = worker.configured(app, app.settings), ServerState()
    config.load()

    def protocol() -> worker.JournaledReader:
        kept = journal.Journal(journal.create())
        path = app if fast else None
        return worker.JournaledReader(worker.HttpProtocol(config, state, {}, kept, lambda: None, app.settings, path))

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(app: Application) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Callers of the same application, with the fast path and without."""
    async with (
        listening(app, fast=True) as quick,
        listening(app, fast=False) as slow,
        httpx.AsyncClient(base_url=quick, timeout=60) as one,
        httpx.AsyncClient(base_url=slow, timeout=60) as other,
    ):
        yield one, other


@pytest_asyncio.fixture(loop_scope="module")
async def quick(both: tuple[httpx.AsyncClient, httpx.AsyncClient]) -> httpx.AsyncClient:
    return both[0]


def said(answer: httpx.Response) -> dict[str, Any]:
    """All that an answer says, but for times and names."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    headers["server-timing"] = re.sub(r"[\d.]+", "", headers.get("server-timing", ""))
    if re.fullmatch("[0-9a-f]{16}", headers["x-request-id"]):
        headers["x-request-id"] = "its own"
    if "seed=" not in str(answer.request.url):
        del headers["x-seed"], headers["content-location"], headers["content-length"]
        return {"status": answer.status_code, "headers": headers}
    return {"status": answer.status_code, "headers": headers, "body": answer.content}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Accept": "image/webp"},
        {"X-Request-ID": "lesson-7", "X-Timeout": "30"},
        {"Connection": "close"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate?model=gan&seed=5"),
        ("GET", "/generate?model=gan&seed=5"),
        ("POST", "/generate?model=gan"),
        ("GET", "/generate?digit=7&seed=8"),
        ("GET", "/generate?model=cgan&digit=3&digit=4&first=2&n=5&seed=1&format=json"),
        ("GET", "/generate?model=ddpm&steps=3&sampler=ddim&n=4&guidance=2&seed=1&format=zip"),
        ("POST", "/generate?model=vae&n=16&seed=9&priority=bulk&format=npz"),
    ],
)
async def test_it_says_what_the_application_says(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], begun: Begun, method: str, path: str, headers: dict[str, str]
) -> None:
    await both[1].request(method, path, headers=headers)  # so that it is known
    quick, slow = [await client.request(method, path, headers=headers) for client in both]
    assert len(begun) == 1
    assert slow.status_code == 200
    assert said(quick) == said(slow)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/generate?model=gan&seed=3", {"json": {"n": 2}}),
        ("/generate?model=gan&seed=3", {"content": b"not read", "headers": {"Content-Type": "text/plain"}}),
        ("/generate?model=gan&seed=3", {"headers": {"Expect": "100-continue"}}),
        ("/generate?model=gan&seed=3", {"headers": {"X-Forwarded-For": "192.0.2.1"}}),
        ("/generate?model=gan&seed=3&seed=4", {}),
        ("/generate?model=gan&n=17&seed=3&format=npz", {}),
        ("/generate?model=gan&n=2&seed=3&format=events", {}),
        ("/generate?model=gan&n=2&seed=3", {"headers": {"Accept": "text/event-stream"}}),
        ("/interpolate?model=gan&seed=3&seed=4", {}),
    ],
)
async def test_what_asks_for_more_goes_the_long_way(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], begun: Begun, path: str, more: dict[str, Any]
) -> None:
    await both[1].post("/generate?model=gan&seed=3")
    for _ in range(2):
        quick, slow = [await client.post(path, **more) for client in both]
        assert not begun
        assert quick.status_code == slow.status_code
        for name in ("content-type", "transfer-encoding", "content-length"):
            assert quick.headers.get(name) == slow.headers.get(name)


async def test_a_caller_who_has_the_image_is_told_so(quick: httpx.AsyncClient) -> None:
    first = [await quick.get("/generate?model=gan&seed=3") for _ in range(2)][1]
    again = await quick.get("/generate?model=gan&seed=3", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_requests_in_a_row_are_answered_in_their_order(quick: httpx.AsyncClient, begun: Begun) -> None:
    expected = [(await quick.get(f"/generate?model=gan&seed={seed}")).content for seed in (1, 2, 3, 4)]
    begun.clear()
    at = quick.base_url
    reader, writer = await asyncio.open_connection(at.host, at.port)
    asked = [f"GET /generate?model=gan&seed={seed} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n" for seed in (1, 2, 3)]
    last = "GET /generate?model=gan&seed=4 HTTP/1.0\r\nAccept: */*\r\n"
    writer.write("\r\n".join([*asked, last, ""]).encode())
    answers = await asyncio.wait_for(reader.read(), 30)  # to its end: HTTP/1.0 closes
    writer.close()
    assert len(begun) == 1  # who comes while another is answered takes a task
    place = 0
    for content in expected:
        place = answers.index(content, place) + len(content)
    assert place == len(answers)
    assert answers.count(b"HTTP/1.1 200 OK") == 4


async def test_a_caller_who_hangs_up_frees_his_seats_at_once(
    app: Application, quick: httpx.AsyncClient, begun: Begun
) -> None:
    engine = app.state.service.engine
    path = "/generate?model=ddpm&steps=900&n=16"
    with pytest.raises(httpx.ReadTimeout):  # known from now on, though it was never drawn
        await quick.post(path, timeout=0.3)
    while engine.outstanding:
        await asyncio.sleep(0.01)
    begun.clear()
    cancelled = engine.ended["cancelled"]
    with pytest.raises(httpx.ReadTimeout):
        await quick.post(path, timeout=0.3)
    assert len(begun) == 1
    assert (await quick.post("/generate?model=gan", timeout=30)).status_code == 200  # a turn later
    assert engine.outstanding == 0
    assert engine.ended["cancelled"] == cancelled + 1
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)
    found = parse_metrics((await quick.get("/metrics")).text)
    assert metric_value(found, "requests_total", route="/generate", model="ddpm", code="499") == 2


async def test_what_is_refused_or_fails_says_why(
    app: Application, quick: httpx.AsyncClient, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, path = app.state.service.engine, "/generate?model=gan&seed=1"
    for timeout in ("", "&timeout=1e-9"):
        await quick.post(path + timeout)
    begun.clear()
    assert "timeout" in problem(await quick.post(path + "&timeout=1e-9"), 504)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "queue_images", 0)
        full = await quick.post(path)
        assert "queue is full" in problem(full, 429)
        assert int(full.headers["retry-after"]) >= 1

    with monkeypatch.context() as patch:
        patch.setattr(app.state.service.engine.catalog.models["gan"].runner, "advance", broken)
        assert "out of ink" in problem(await quick.post(path), 500)
    assert len(begun) == 3
    assert (await quick.post(path)).status_code == 200


def broken(*_: object) -> None:
    raise RuntimeError("out of ink")


async def test_what_nobody_foresaw_ends_too(
    quick: httpx.AsyncClient, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/generate?model=gan&seed=1"
    await quick.post(path)
    begun.clear()
    monkeypatch.setattr("service.api.generate.file", broken)
    assert "ink" not in problem(await quick.post(path), 500)
    assert len(begun) == 1


async def test_a_service_that_ends_says_so_and_closes(
    app: Application, quick: httpx.AsyncClient, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/generate?model=ddpm&steps=200&seed=1"
    await quick.post("/generate?model=gan&seed=1")
    await quick.post(path)
    begun.clear()
    asked = asyncio.create_task(quick.post(path))
    while not begun:
        await asyncio.sleep(0)
    monkeypatch.setattr(app, "draining", True)
    monkeypatch.setattr(app.state.service.engine, "stopping", True)
    refused = await quick.post("/generate?model=gan&seed=1")
    problem(refused, 503)
    answered = await asked
    assert answered.status_code == 200
    assert {answer.headers["connection"] for answer in (refused, answered)} == {"close"}


async def test_it_is_metered_told_of_and_let_go(
    settings: Settings, tmp_path: Path, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, stream = tmp_path / "keys.toml", io.StringIO()
    secret = keys.add(file, "physics", {"images": "5/day", "concurrent": 2})
    await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # other tests' requests are told of
    monkeypatch.setattr(sys, "stderr", stream)
    app = create_app(
        settings.model_copy(update={"keys": file}), authenticator=Authenticator(keys.read(file), tmp_path, 0, 1)
    )
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        app.router.lifespan_context(app),
        listening(app, fast=True) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
    ):
        answers = [await client.get("/generate?model=gan&seed=1&n=2") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.headers["ratelimit"][:12] for answer in answers] == ['"images";r=3', '"images";r=1']
        assert answers[1].headers["cache-control"].startswith("private")
        problem(await client.get("/generate?model=gan&seed=1&n=2"), 429)
        problem(await client.get("/generate?model=gan&seed=1&n=2", headers={"Authorization": "Bearer nobody"}), 401)
        assert len(begun) == 3
        assert app.authenticator is not None
        assert app.authenticator.counters["physics"].under_way() == 0
        await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)
        found = parse_metrics(app.metrics.render([]).decode())
        for code, model, count in (("200", "gan", 2), ("401", "", 1), ("429", "gan", 1)):
            assert metric_value(found, "requests_total", route="/generate", model=model, code=code) == count
    lines = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 200, 429, 401]
    assert lines[1]["key"] == "physics"
    assert {"queue_ms", "device_ms", "encode_ms", "model", "digest", "seed", "images", "batch"} <= lines[1].keys()


async def test_requests_in_a_row_come_in_with_a_key_one_after_the_other(
    settings: Settings, tmp_path: Path, begun: Begun
) -> None:
    file = tmp_path / "keys.toml"
    secret = keys.add(file, "physics", {"concurrent": 1})
    app = create_app(
        settings.model_copy(update={"keys": file}), authenticator=Authenticator(keys.read(file), tmp_path, 0, 1)
    )
    async with app.router.lifespan_context(app), listening(app, fast=True) as url:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        ask = f"GET /generate?model=gan&seed=1 HTTP/1.1\r\nX-API-Key: {secret}\r\nHost: x\r\n"
        writer.write(f"{ask}\r\n".encode())
        answers = await asyncio.wait_for(reader.readuntil(b"IEND"), 30)
        writer.write((f"{ask}\r\n" * 3 + f"{ask}Connection: close\r\n\r\n").encode())
        answers += await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 5
    assert len(begun) == 1  # who comes while another is answered takes a task


async def test_an_engine_on_its_own_thread_answers_as_one_on_the_loop_and_an_application_can_start_twice(
    settings: Settings, both: tuple[httpx.AsyncClient, httpx.AsyncClient], begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [f"/generate?model=cgan&digit=7&seed={seed}" for seed in range(20)]
    expected = [(await both[1].post(path)).content for path in asked]
    monkeypatch.setattr("service.app.LoopDriver", ThreadEngine)
    app = create_app(settings)
    for _ in range(2):
        async with (
            app.router.lifespan_context(app),
            listening(app, fast=True) as url,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            await client.post(asked[0])
            begun.clear()
            answers = await asyncio.gather(*map(client.post, asked))
            assert [answer.content for answer in answers] == expected
            assert len(begun) == 20
    assert metric_value(parse_metrics(app.metrics.render([]).decode()), "accepted_total") == 2 * 21


async def test_answered_requests_leave_nothing_for_the_garbage_collector(app: Application, begun: Begun) -> None:
    async with listening(app, fast=True) as url:
        gc.collect()
        gc.disable()
        try:
            async with httpx.AsyncClient(base_url=url) as client:
                for seed in range(4):
                    await client.get(f"/generate?model=gan&seed={seed}")
            assert len(begun) >= 3
            begun.clear()
            await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # the log has them until then
            assert not [one for one in gc.get_objects() if isinstance(one, Ticket | Fast | worker.HttpProtocol)]
        finally:
            gc.enable()


async def test_callers_at_the_same_time_get_each_his_own(quick: httpx.AsyncClient, begun: Begun) -> None:
    alone = [(await quick.get(f"/generate?model=gan&seed={seed}")).content for seed in range(40)]
    begun.clear()
    together = await asyncio.gather(*(quick.get(f"/generate?model=gan&seed={seed}") for seed in range(40)))
    assert len(begun) == 40
    assert [answer.content for answer in together] == alone
    assert max(int(answer.headers["x-batch"]) for answer in together) > 1
