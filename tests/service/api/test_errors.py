"""Every error is a problem document whose detail says what to do."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from models import families
from tests.service.conftest import http_scope, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

# -- parameters --------------------------------------------------------------------------------------------------------


async def test_the_response_to_an_unknown_model_lists_the_models(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate?model=dall-e")
    assert ", ".join(families.names()) in problem(response, 404, "unknown-model")
    assert response.json()["models"] == families.names()


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("model=gan&digit=3", "digit: gan is not conditional"),
        ("model=cgan&digit=10", "digit: cgan takes 0 to 9"),
        ("model=cgan&digit=-1", "digit.0: "),
        ("model=cgan&digit=seven", "digit.0: "),
        ("model=ddpm&steps=5000", "steps: ddpm takes 1 to 1000"),
        ("model=ddpm&steps=0", "steps: "),
        ("model=gan&steps=3", "steps: gan always takes 1; leave it out"),
        ("model=ddpm&sampler=euler", "sampler: ddpm has dpm++2m, ddim, ddpm"),
        ("model=gan&sampler=ddim", "sampler: gan has no such choice; leave it out"),
        ("model=gan&prior=fitted", "prior: gan has no such choice"),
        ("model=ddpm&prior=fitted", "prior: ddpm has no such choice"),
        ("model=vae&sampler=fitted", "sampler: vae has no such choice"),
        ("model=vae&prior=flat", "prior: vae has fitted, standard"),
        ("model=ddpm&guidance=99", "guidance: ddpm takes 0.0 to 10.0"),
        ("model=ddpm&guidance=nan", "guidance: "),
        ("model=gan&guidance=2", "guidance: gan does not take it; leave it out"),
        ("model=gan&n=0", "n: "),
        ("model=gan&n=65", "n: at most 64 per request; request the rest with first=64"),
        ("model=gan&seed=-1", "seed: "),
        ("model=gan&seed=9223372036854775808", "seed: "),
        ("model=gan&seed=1&seed=2", "seed: given more than once"),
        ("model=gan&first=-1", "first: "),
        ("model=gan&format=tiff", "format: unknown format 'tiff'; use one of: png, webp, zip, npz, json"),
        ("model=gan&priority=urgent", "priority: "),
        ("model=gan&timeout=0", "timeout: "),
        ("model=gan&timeout=nan", "timeout: "),
        ("model=gan&colour=red", "colour: unknown parameter; the parameters are: model"),
    ],
)
async def test_an_invalid_parameter_is_named(client: httpx.AsyncClient, query: str, detail: str) -> None:
    assert problem(await client.post(f"/generate?{query}"), 422, "invalid-parameter").startswith(detail)


async def test_all_invalid_parameters_are_listed(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate?model=gan&n=0&first=-1&colour=red")
    problem(response, 422)
    assert [error["parameter"] for error in response.json()["errors"]] == ["n", "first", "colour"]


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 422),
        (b"", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"[" * 40_000, "application/json", 422),
        (b"<a/>", "application/xml", 415),
        (b"model=gan", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
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
async def test_an_invalid_body_is_refused(
    client: httpx.AsyncClient, content: bytes, media_type: str, status: int
) -> None:
    headers = {"Content-Type": media_type}
    problem(await client.post("/generate?model=gan", content=content, headers=headers), status)


@pytest.mark.parametrize("path", ["/generate", "/interpolate", "/decode"])
async def test_a_body_without_a_content_type_must_be_json(client: httpx.AsyncClient, path: str) -> None:
    for content in (b"model=gan", b"{", b"\xff", b"<a/>"):
        response = await client.post(path, content=content)
        assert "application/json" in problem(response, 415, "unsupported-body")
    assert "must be an object" in problem(await client.post(path, content=b"[1]"), 422)


async def test_json_without_a_content_type_is_read(client: httpx.AsyncClient) -> None:
    expected = await client.post("/generate?model=gan&seed=1&n=2")
    response = await client.post("/generate?model=gan", content=b'{"seed": 1, "n": 2}')
    assert (response.status_code, response.content) == (200, expected.content)
    assert (await client.post("/generate?model=gan&seed=1&n=2", content=b"{}")).content == expected.content


async def test_a_body_of_unknown_length_is_limited_too(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = await client.post("/generate", content=body(), headers={"Content-Type": "application/json"})
    assert "at most 50000 bytes" in problem(response, 413, "body-too-large")


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/avif, application/xml"])
async def test_a_request_that_accepts_no_format_is_refused(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.post("/generate?model=gan", headers={"Accept": accept})
    assert "image/png" in problem(response, 406, "not-acceptable")


async def test_unknown_paths_and_methods_are_refused(client: httpx.AsyncClient) -> None:
    assert problem(await client.get("/nowhere"), 404, "not-found") == "nothing is at /nowhere; see /docs"
    problem(await client.get("/models/nope"), 404, "unknown-model")
    response = await client.delete("/generate?model=gan")
    assert problem(response, 405, "method-not-allowed") == "/generate takes GET, HEAD, POST, not DELETE"
    assert response.headers["allow"] == "GET, HEAD, POST"
    response = await client.post("/openapi.json")
    problem(response, 405)
    assert "GET" in response.headers["allow"]


# -- the engine --------------------------------------------------------------------------------------------------------


async def test_a_full_queue_gives_429_and_says_when_to_retry(client: httpx.AsyncClient, app: FastAPI) -> None:
    query = {"model": "ddpm", "n": 64, "steps": 10}
    accepted = [asyncio.create_task(client.post("/generate", params=query)) for _ in range(3)]
    while app.state.service.engine.outstanding < 3 * 64:
        await asyncio.sleep(0)
    refused = await client.post("/generate", params=query)
    problem(refused, 429, "queue-is-full")
    assert int(refused.headers["retry-after"]) == refused.json()["retry_after"] >= 1
    for task in accepted:
        assert (await task).status_code == 200


async def test_a_disconnect_cancels_the_request(client: httpx.AsyncClient, app: FastAPI) -> None:
    engine = app.state.service.engine
    disconnected = asyncio.Event()
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> MutableMapping[str, Any]:
        for message in received:
            return message
        await disconnected.wait()
        return {"type": "http.disconnect"}

    cancelled = engine.ended["cancelled"]
    request = asyncio.create_task(app(http_scope("/generate", "model=ddpm&n=64&steps=1000"), receive, ignore))
    await asyncio.sleep(0.2)
    assert engine.outstanding == 64
    disconnected.set()
    await request
    await client.post("/generate?model=gan")  # one engine step later
    assert engine.outstanding == 0
    assert engine.ended["cancelled"] == cancelled + 1


async def ignore(message: MutableMapping[str, Any]) -> None:
    """Drop a message of the application."""


@pytest.mark.parametrize("content_type", [b"application/json", b"multipart/form-data; boundary=x"])
async def test_a_disconnect_during_the_body_is_no_error_of_the_service(
    app: FastAPI, content_type: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received = iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> MutableMapping[str, Any]:
        return next(received)

    scope = {**http_scope("/generate"), "headers": [(b"content-type", content_type)]}
    await app(scope, receive, ignore)
    assert not caplog.records
    assert (scope["context"].status, scope["context"].problem) == (499, "client-gone")


def fail(error: Exception) -> Callable[..., Any]:
    """A function that raises `error`."""

    def failing(*_: object) -> None:
        raise error

    return failing


async def test_a_failing_step_gives_500_with_its_reason(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = app.state.service.catalog.models["gan"].runner
    monkeypatch.setattr(runner, "advance", fail(RuntimeError("out of memory")))
    assert "out of memory" in problem(await client.post("/generate?model=gan"), 500, "draw-failed")


async def test_an_unexpected_exception_gives_500_without_details(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.service.engine, "submit", fail(KeyError("secret")))
    assert "secret" not in problem(await client.post("/generate?model=gan"), 500, "problem")


async def test_a_service_that_shuts_down_gives_503(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.service.engine, "stopping", True)
    response = await client.post("/generate?model=gan")
    problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "5"


async def test_a_request_that_misses_its_deadline_gets_504(client: httpx.AsyncClient) -> None:
    late = await client.post("/generate?model=ddpm&n=64&steps=1000&timeout=0.05")
    assert "timeout" in problem(late, 504, "too-late")


async def test_priority_and_timeout_do_not_change_the_result(client: httpx.AsyncClient) -> None:
    plain = await client.post("/generate?model=ddpm&n=1&steps=2&seed=1")
    response = await client.post("/generate?model=ddpm&n=1&steps=2&timeout=60&priority=bulk&seed=1")
    assert response.content == plain.content
    assert response.headers["content-location"] == plain.headers["content-location"]


async def test_the_timeout_parameter_takes_precedence_over_the_header(client: httpx.AsyncClient) -> None:
    short = {"X-Timeout": "0.05"}
    problem(await client.post("/generate?model=ddpm&n=64&steps=1000", headers=short), 504)
    assert (await client.post("/generate?model=ddpm&steps=2&timeout=60", headers=short)).status_code == 200
    assert (await client.post("/generate?model=ddpm&steps=2", json={"timeout": 60}, headers=short)).status_code == 200
    assert "timeout" in problem(await client.post("/generate?model=gan", headers={"X-Timeout": "soon"}), 422)
