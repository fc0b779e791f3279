"""`drawbridge dataset` with several services, some of which fail."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from drawbridge.cli import main
from drawbridge.client import AsyncClient, ServiceError, Unreachable
from drawbridge.commands import sampling
from drawbridge.dataset import drawing
from drawbridge.dataset import parts as parts_module
from harness.server import Server

Fault = Callable[[httpx.Request, int], httpx.Response | None]
"""Gives the response to a request to /generate, which is the n-th one, or raises; None lets the service respond."""


class Faulty(httpx.AsyncBaseTransport):
    """A transport to a real service, in front of which a fault responds to some requests."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.inner, self.requests = fault, httpx.AsyncHTTPTransport(), 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/generate" and request.method == "POST":
            self.requests += 1
            if response := self.fault(request, self.requests):
                return response
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


Run = Callable[..., int]


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command with one service per transport, and writes NAME.npz."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts_module, "PART_SIZE", 8)
    monkeypatch.setattr(drawing, "FIRST_DELAY", 0.001)

    def run(name: str, *transports: httpx.AsyncBaseTransport | None) -> int:
        by_url = {f"http://service-{number}": transport for number, transport in enumerate(transports)}

        @asynccontextmanager
        async def connect(url: str | None, *_: object) -> AsyncIterator[AsyncClient]:
            assert url is not None
            async with AsyncClient(server.url, transport=by_url[url], retries=0) as client:
                yield client

        monkeypatch.setattr(sampling, "connect", connect)
        urls = [word for url in by_url for word in ("--url", url)]
        return main(["dataset", "cgan", "--per-label", "24", *urls, "-o", f"{name}.npz"])

    return run


def lost_after(count: int) -> Fault:
    def fault(request: httpx.Request, number: int) -> None:
        if number > count:
            raise httpx.ConnectError("gone", request=request)

    return fault


def healthy(_: httpx.Request, __: int) -> None:
    """Let the service respond to every request."""


def test_several_services_share_the_work_and_give_the_same_bytes(run: Run) -> None:
    one, other = Faulty(healthy), Faulty(healthy)
    assert run("shared", one, other) == 0
    assert run("alone", Faulty(healthy)) == 0
    assert Path("shared.npz").read_bytes() == Path("alone.npz").read_bytes()
    assert Path("shared.npz.card.json").read_bytes() == Path("alone.npz.card.json").read_bytes()
    assert one.requests + other.requests == 30
    assert min(one.requests, other.requests) >= 4


def test_a_service_that_is_lost_in_mid_way_loses_nothing(run: Run) -> None:
    lost, other = Faulty(lost_after(4)), Faulty(healthy)
    assert run("lost", lost, other) == 0
    assert run("alone", Faulty(healthy)) == 0
    assert lost.requests > 4
    assert Path("lost.npz").read_bytes() == Path("alone.npz").read_bytes()


def test_a_service_that_comes_back_is_used_again(run: Run) -> None:
    def fault(request: httpx.Request, number: int) -> None:
        if 3 <= number <= 12:
            raise httpx.ReadError("restarting", request=request)

    assert run("x", Faulty(fault)) == 0


def test_when_all_services_are_lost_the_same_command_continues(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Faulty(lost_after(6)), Faulty(lost_after(6))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "images/s" not in line]
    assert [line.partition(" is ")[0] for line in lines if "given up" in line] != []
    assert lines[-1].startswith("error: http://127.0.0.1:")
    assert lines[-1].endswith("does not respond: gone")
    assert len([*Path("x.npz.parts").glob("*.part")]) == 12
    repaired = Faulty(healthy)
    assert run("x", repaired) == 0
    assert repaired.requests == 18
    assert run("alone", Faulty(healthy)) == 0
    assert Path("x.npz").read_bytes() == Path("alone.npz").read_bytes()


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "shutting down"}),
        httpx.Response(429, json={"detail": "the queue is full"}),
        httpx.Response(500, json={"detail": "generation failed"}),
        httpx.Response(
            200, content=b"no npz", headers={"X-Seed": "0", "X-Model-Digest": "d", "Content-Location": "/"}
        ),
    ],
    ids=["503", "429", "500", "damaged"],
)  # fmt: skip
def test_a_temporary_failure_is_tried_again(response: httpx.Response, run: Run) -> None:
    failing = Faulty(lambda _, number: response if number % 3 == 0 else None)
    assert run("x", failing) == 0
    assert run("alone", Faulty(healthy)) == 0
    assert Path("x.npz").read_bytes() == Path("alone.npz").read_bytes()


def test_a_service_that_refuses_a_part_is_given_up_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    refusing = Faulty(lambda *_: httpx.Response(404, json={"detail": "no such version"}))
    assert run("x", refusing, Faulty(healthy)) == 0
    assert refusing.requests == 4  # one for each of its requests at the same time
    assert "http://service-0 is given up: no such version" in capsys.readouterr().err
    assert run("y", Faulty(refusing.fault)) == 2
    assert capsys.readouterr().err.endswith("error: no such version\n")


class Rewriting(httpx.AsyncBaseTransport):
    """A transport to a real service that changes the description of its models, or its ETags."""

    def __init__(self, change: dict[str, object] | None = None, etag: str | None = None) -> None:
        self.change, self.etag, self.inner = change or {}, etag, httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if request.url.path == "/models":
            body = json.loads(await response.aread())
            return httpx.Response(200, json={"models": [{**model, **self.change} for model in body["models"]]})
        if self.etag and request.method == "HEAD":
            response.headers["etag"] = self.etag
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()


def test_a_service_with_other_weights_is_refused_in_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Rewriting(), Rewriting({"digest": "0123456789abcdef"})) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: http://service-1: other weights of cgan (0123456789ab) than http://service-0 has (")
    assert error.count("\n") == 1
    assert not [*Path().iterdir()]


def test_a_service_without_the_model_is_refused_in_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Rewriting(), Rewriting({"name": "other"})) == 2
    assert "error: http://service-1: no model 'cgan'; available models: other" in capsys.readouterr().err


def test_a_service_on_another_device_is_noted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Rewriting(), Rewriting(etag='"other"')) == 0
    assert "note: http://service-1 has another version or device than http://service-0" in capsys.readouterr().err
    assert run("y", Rewriting(), Rewriting()) == 0
    assert "note:" not in capsys.readouterr().err


class Locked(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"detail": "send a key"})


def test_a_service_that_refuses_the_key_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Faulty(healthy), Locked()) == 2
    assert capsys.readouterr().err == "error: http://service-1: send a key\n"


class Down(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)


def test_a_service_that_is_down_at_the_start_is_left_out(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("x", Down(), Faulty(healthy)) == 0
    assert "http://service-0 is left out: " in capsys.readouterr().err
    assert run("y", Down(), Down()) == 2
    assert capsys.readouterr().err.endswith("error: none of the services responds\n")


def test_the_delay_is_what_the_service_asks_for_or_doubles() -> None:
    assert drawing._delay(3, ServiceError(429, {}, retry_after=7.0)) == 7.0
    assert drawing._delay(0, ServiceError(429, {}, retry_after=86400.0)) == 30.0
    assert [drawing._delay(failures, Unreachable("gone")) for failures in (0, 1, 2, 20)] == [0.25, 0.5, 1.0, 30.0]
