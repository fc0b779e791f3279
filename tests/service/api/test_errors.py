"""Whatever is wrong with a request, its answer is a problem document that says what to do."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from models import families
from tests.service.conftest import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_unknown_model_is_answered_with_those_there_are(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate?model=dall-e")
    assert ", ".join(families.names()) in problem(answer, 404)
    assert answer.json()["models"] == families.names()


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("model=gan&digit=3", "gan cannot be told which digit"),
        ("model=cgan&digit=10", "cgan draws 0 to 9"),
        ("model=cgan&digit=-1", "digit.0"),
        ("model=cgan&digit=seven", "digit.0"),
        ("model=ddpm&steps=5000", "steps: ddpm takes 1 to 1000"),
        ("model=ddpm&steps=0", "steps"),
        ("model=gan&steps=3", "steps: gan takes 1"),
        ("model=ddpm&sampler=euler", "dpm++2m, ddim, ddpm"),
        ("model=gan&sampler=ddim", "gives no choice"),
        ("model=gan&prior=fitted", "gives no choice"),
        ("model=ddpm&prior=fitted", "prior: ddpm gives no choice"),
        ("model=vae&sampler=fitted", "sampler: vae gives no choice"),
        ("model=vae&prior=flat", "prior: vae has fitted, standard"),
        ("model=ddpm&guidance=99", "guidance: ddpm takes 0.0 to 10.0"),
        ("model=ddpm&guidance=nan", "guidance"),
        ("model=gan&guidance=2", "takes none"),
        ("model=gan&n=0", "n: "),
        ("model=gan&n=65", "at most 64 a request; ask for the rest with first=64"),
        ("model=gan&seed=-1", "seed"),
        ("model=gan&seed=9223372036854775808", "seed"),
        ("model=gan&seed=1&seed=2", "given more than once"),
        ("model=gan&first=-1", "first"),
        ("model=gan&format=tiff", "there are: png, webp, zip, npz, json"),
        ("model=gan&priority=urgent", "priority"),
        ("model=gan&timeout=0", "timeout"),
        ("model=gan&timeout=nan", "timeout"),
        ("model=gan&colour=red", "no such parameter; there are: model"),
    ],
)
async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, query: str, complaint: str) -> None:
    assert complaint in problem(await client.post(f"/generate?{query}"), 422)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"[" * 40_000, "application/json", 422),
        (b"<a/>", "application/xml", 415),
        (b"model=gan", "application/x-www-form-urlencoded", 415),
        (b"no boundary", "multipart/form-data", 422),
        (b"--x--", "multipart/form-data; boundary=x; charset=undefined", 415),
        (b"--x--", "multipart/form-data; boundary=x; charset=punycode", 415),
        (b'{"\\ud800": 1}', "application/json", 422),
        (b'{"seed": "1"}', "application/json", 422),
        (b'{"n": true}', "application/json", 422),
        (b'{"model": "cgan", "digit": [%s1]}' % (b"1," * 64), "application/json", 422),
        (b"x" * 50_001, "application/json", 413),
    ],
)
async def test_a_wrong_body_is_refused(client: httpx.AsyncClient, content: bytes, kind: str, status: int) -> None:
    problem(await client.post("/generate?model=gan", content=content, headers={"Content-Type": kind}), status)


async def test_a_body_of_no_declared_length_is_cut_off_too(client: httpx.AsyncClient) -> None:
    async def endless():
        for _ in range(100):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    assert "at most 50000 bytes" in problem(await client.post("/generate", content=endless(), headers=headers), 413)


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/avif, application/xml"])
async def test_what_nobody_accepts_is_not_drawn(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.post("/generate?model=gan", headers={"Accept": accept})
    assert "image/png" in problem(answer, 406)


async def test_wrong_paths_and_methods(client: httpx.AsyncClient) -> None:
    assert "/docs" in problem(await client.get("/nowhere"), 404)
    answer = await client.delete("/generate?model=gan")
    problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}
    problem(await client.get("/models/nope"), 404)
    answer = await client.post("/openapi.json")
    problem(answer, 405)
    assert "GET" in answer.headers["allow"]


async def test_a_full_queue_says_when_to_come_again(client: httpx.AsyncClient, app: FastAPI) -> None:
    slow = {"model": "ddpm", "n": 64, "steps": 10}
    waiting = [asyncio.create_task(client.post("/generate", params=slow)) for _ in range(3)]
    while app.state.service.engine.outstanding < 3 * 64:
        await asyncio.sleep(0)
    answer = await client.post("/generate", params=slow)
    problem(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["retry_after"] >= 1
    for task in waiting:
        assert (await task).status_code == 200


async def test_a_client_that_hangs_up_frees_its_seats(client: httpx.AsyncClient, app: FastAPI) -> None:
    engine = app.state.service.engine
    hung_up = asyncio.Event()

    async def receive():
        if receive.body:
            receive.body = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await hung_up.wait()
        return {"type": "http.disconnect"}

    receive.body = True
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/generate",
        "raw_path": b"/generate", "query_string": b"model=ddpm&n=64&steps=1000", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("drawbridge", 80), "state": {},
    }  # fmt: skip
    cancelled = engine.ended["cancelled"]
    task = asyncio.create_task(app(scope, receive, send))
    await asyncio.sleep(0.2)
    assert engine.outstanding == 64
    hung_up.set()
    await task
    await client.post("/generate?model=gan")  # a turn later
    assert engine.outstanding == 0
    assert engine.ended["cancelled"] == cancelled + 1


async def test_what_breaks_in_drawing_is_told_without_a_traceback(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_):
        raise RuntimeError("out of ink")

    monkeypatch.setattr(app.state.service.engine.catalog.models["gan"].runner, "advance", broken)
    assert "out of ink" in problem(await client.post("/generate?model=gan"), 500)


async def test_what_nobody_foresaw_is_told_without_a_traceback(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_):
        raise KeyError("secret")

    monkeypatch.setattr(app.state.service.engine, "submit", broken)
    assert "secret" not in problem(await client.post("/generate?model=gan"), 500)


async def test_a_service_that_shuts_down_says_so(app: FastAPI, client: httpx.AsyncClient) -> None:
    engine = app.state.service.engine
    engine.stopping = True
    try:
        answer = await client.post("/generate?model=gan")
    finally:
        engine.stopping = False
    problem(answer, 503)
    assert "retry-after" in answer.headers


async def test_what_is_not_drawn_in_time_is_said_so(client: httpx.AsyncClient) -> None:
    detail = problem(await client.post("/generate?model=ddpm&n=64&steps=1000&timeout=0.05"), 504)
    assert "timeout" in detail
    answer = await client.post("/generate?model=ddpm&n=1&steps=2&timeout=60&priority=bulk&seed=1")
    plain = await client.post("/generate?model=ddpm&n=1&steps=2&seed=1")
    assert answer.content == plain.content
    assert answer.headers["content-location"] == plain.headers["content-location"]


async def test_a_header_says_the_time_too_and_the_parameter_goes_before_it(client: httpx.AsyncClient) -> None:
    hurry = {"X-Timeout": "0.05"}
    problem(await client.post("/generate?model=ddpm&n=64&steps=1000", headers=hurry), 504)
    assert (await client.post("/generate?model=ddpm&steps=2&timeout=60", headers=hurry)).status_code == 200
    assert "timeout" in problem(await client.post("/generate?model=gan", headers={"X-Timeout": "soon"}), 422)
