"""The service as a process: real sockets, signals, timeouts and the watchdog."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness.connections import EXCHANGES, run_exchange
from harness.server import ROOT, Server, environment
from models import families
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import asgi_client, problem
from tests.serving import serving, wait_for, wait_for_accepted


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    """A service with an admin port, whose queue has room for one request of 1024 images."""
    with serving(weights, admin_port=0, queue_images=1024) as server:
        yield server


async def test_another_process_with_other_batch_sizes_gives_the_same_bytes(server: Server, weights: Path) -> None:
    app = create_app(Settings(weights=weights, device="cpu", max_batch_size=32))
    async with (
        app.router.lifespan_context(app),
        asgi_client(app) as here,
        httpx.AsyncClient(base_url=server.url, timeout=60) as there,
    ):
        for name in families.names():
            query = {"model": name, "seed": 12, "first": 3, "n": 5}
            expected, response = [await client.post("/generate", params=query) for client in (here, there)]
            assert expected.status_code == response.status_code == 200
            assert response.content == expected.content, name
            assert response.headers["x-model-digest"] == expected.headers["x-model-digest"]


def test_concurrent_requests_share_a_batch(server: Server) -> None:
    def generate(seed: int) -> httpx.Response:
        query = {"model": "ddpm", "seed": seed, "steps": 200}
        return httpx.post(f"{server.url}/generate", params=query, timeout=120)

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(generate, range(6)))
    assert {response.status_code for response in responses} == {200}
    assert max(int(response.headers["x-batch"]) for response in responses) > 1


def test_a_disconnect_frees_the_queue(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/generate?model=ddpm&n=1024&steps=1000", timeout=0.3)
    # The service notices after a pause for the client, and at the end of the running step.
    wait_for(lambda: httpx.post(f"{server.url}/generate?model=gan&n=1024", timeout=60).status_code == 200, seconds=10)


def test_health_and_metrics_are_at_the_admin_port(server: Server) -> None:
    admin = next(match[1] for line in server.lines if (match := re.search(r"admin port on (http://[\d.:]+)", line)))
    for path in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(f"{admin}{path}", timeout=30).status_code == 200
        problem(httpx.get(f"{server.url}{path}", timeout=30), 404, "not-found")
    problem(httpx.post(f"{admin}/generate?model=gan", timeout=30), 404, "not-found")


# -- shutdown ----------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_accepted_requests_and_refuses_new_ones(weights: Path) -> None:
    with (
        serving(weights) as server,
        httpx.Client(base_url=server.url, timeout=30) as kept,
        ThreadPoolExecutor(1) as pool,
    ):
        assert kept.post("/generate?model=gan").status_code == 200
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&steps=300", timeout=60)
        wait_for_accepted(server, 2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        refused = [kept.post("/generate?model=gan"), httpx.post(f"{server.url}/generate?model=gan", timeout=30)]
        ready = httpx.get(f"{server.url}/readyz", timeout=30)
        assert server.process.wait(30) == 0, "".join(server.lines)
        assert accepted.result().status_code == 200
    assert ready.status_code == 503
    for response in refused:
        problem(response, 503, "unavailable")
        assert response.headers["retry-after"] == "5"
        assert response.headers["connection"] == "close"


@pytest.mark.slow
def test_requests_that_exceed_the_drain_timeout_get_503(weights: Path) -> None:
    with serving(weights, drain_timeout=0.5) as server, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(server)
        server.process.send_signal(signal.SIGTERM)
        problem(accepted.result(), 503, "unavailable")
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_every_request_gets_a_response_during_a_shutdown_under_load(weights: Path) -> None:
    statuses: list[int] = []

    def send_requests(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while True:
                try:
                    statuses.append(client.post("/generate?model=ddpm&steps=20").status_code)
                except httpx.ConnectError:  # the service has exited; it never accepted this connection
                    return
                if statuses[-1] == 503:
                    return

    with serving(weights, workers=2) as server, ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(send_requests, server.url) for _ in range(16)]
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.result()
        assert server.process.wait(30) == 0
    assert set(statuses) == {200, 503}


@pytest.mark.slow
def test_a_second_signal_exits_at_once(weights: Path) -> None:
    with serving(weights) as server, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(server)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 1
        assert accepted.result().status_code == 503


# -- slow and oversized requests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(weights: Path) -> Iterator[Server]:
    """A service with short timeouts."""
    limits = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 2, "keep_alive_timeout": 2}
    models = {"unconditional_model": "gan", "conditional_model": "cgan"}
    with serving(weights, **limits, **models, max_body_bytes=2**20) as server:
        yield server


JSON_HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
FORM_HEAD = JSON_HEAD.replace(b"application/json", b"multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nHost:", b"HTTP/1.1 408"),
        (JSON_HEAD + b"{", b"HTTP/1.1 408"),
        (FORM_HEAD + b"--x", b"HTTP/1.1 408"),
        (b"GET /livez HTTP/1.1\r\nX-A: " + b"a" * 40_000, b"HTTP/1.1 431"),
        (b"GET /livez\0 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
    ],
    ids=["silent", "slow headers", "slow JSON", "slow form", "large headers", "invalid"],
)
def test_slow_and_oversized_requests_are_refused(strict: Server, sent: bytes, expected: bytes) -> None:
    address = httpx.URL(strict.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(expected)
    assert httpx.get(f"{strict.url}/livez", timeout=30).status_code == 200


@pytest.mark.slow
def test_no_exchange_exceeds_the_limits_or_holds_its_connection(strict: Server) -> None:
    with ThreadPoolExecutor(len(EXCHANGES)) as pool:
        results = list(pool.map(lambda exchange: run_exchange(strict.url, exchange), EXCHANGES))
    failed = [
        (exchange.name, end) for exchange, end in zip(EXCHANGES, results, strict=True) if end not in exchange.allowed
    ]
    assert not failed


# -- the watchdog ------------------------------------------------------------------------------------------------------

STUCK = """
import asyncio, sys, time
from service import app
from service.engine import setup
from service.engine.loops import EventLoopEngine, ThreadEngine
from service.engine.request import Request, Sample, StartState
from service.settings import Settings
from service.telemetry import log

setup.EventLoopEngine = {"EventLoopEngine": EventLoopEngine, "ThreadEngine": ThreadEngine}[sys.argv[1]]

async def main():
    settings = Settings(watchdog_timeout=1)
    log.configure(settings)
    application = app.create_app(settings)
    async with application.router.lifespan_context(application):
        watchdog = asyncio.create_task(application.watch())
        await asyncio.sleep(1.5)  # an idle process makes progress too
        service = application.state.service
        model = service.catalog.models["gan"]
        model.runner.advance = lambda rows: time.sleep(60)
        service.engine.submit(Request(model.key, (Sample(StartState(0, 0)),), 1))
        await asyncio.sleep(60)

asyncio.run(main())
"""
"""A worker whose device step does not end."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "message"),
    [("EventLoopEngine", "Timeout (0:00:01)!"), ("ThreadEngine", "a device step has run for more than 1 s")],
)
def test_a_step_that_does_not_end_ends_its_process(weights: Path, tmp_path: Path, loop: str, message: str) -> None:
    (tmp_path / "gan").symlink_to(weights / "gan")
    process = subprocess.run(
        [sys.executable, "-c", STUCK, loop],
        cwd=ROOT,
        env=environment(weights=tmp_path, device="cpu", max_batch_size=4) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert message in process.stderr
