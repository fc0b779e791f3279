"""The service as a process: a real server on a real socket."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from harness.connections import EXCHANGES, run_exchange
from harness.server import ROOT, Server, environment
from models import families
from service.settings import Settings
from tests.serving import serving, wait_for_accepted


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights) as running:
        yield running


def test_two_processes_draw_the_same_bytes(server: Server, weights: Path) -> None:
    with serving(weights, max_batch_size=32) as other:
        for name in families.names():
            query = {"model": name, "seed": 12, "first": 3, "n": 5}
            one, two = (httpx.post(f"{at.url}/generate", params=query, timeout=60) for at in (server, other))
            assert one.status_code == two.status_code == 200
            assert one.content == two.content, name
            assert one.headers["x-model-digest"] == two.headers["x-model-digest"]


def test_callers_at_the_same_time_share_a_batch(server: Server) -> None:
    answers: list[httpx.Response] = []

    def call(seed: int) -> None:
        query = {"model": "ddpm", "seed": seed, "steps": 200}
        answers.append(httpx.post(f"{server.url}/generate", params=query, timeout=120))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert max(int(answer.headers["x-batch"]) for answer in answers) > 1


def test_a_caller_who_hangs_up_is_not_drawn_for(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/generate?model=ddpm&n=1024&steps=1000", timeout=0.3)
    # A queue still full of those images would not let so many more in.
    answer = httpx.post(f"{server.url}/generate?model=gan&n=1024", timeout=60)
    assert answer.status_code == 200


def test_a_signal_lets_what_was_accepted_end(weights: Path) -> None:
    answers: list[httpx.Response] = []
    with serving(weights) as stopping:
        call = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{stopping.url}/generate?model=ddpm&steps=300", timeout=60)  # about a second
            )
        )
        call.start()
        wait_for_accepted(stopping)
        stopping.process.send_signal(signal.SIGTERM)
        call.join()
        assert stopping.process.wait(30) == 0, "".join(stopping.lines)
    assert [answer.status_code for answer in answers] == [200]


def test_what_does_not_end_in_time_after_a_signal_is_answered_all_the_same(weights: Path) -> None:
    with serving(weights, drain_timeout=0.5) as stopping, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.post, f"{stopping.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(stopping)
        stopping.process.send_signal(signal.SIGTERM)
        answer = call.result()
        assert stopping.process.wait(30) == 0
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "shut down before this request was finished" in answer.json()["detail"]


def test_whoever_comes_while_it_ends_is_told_so_and_not_cut_off(weights: Path) -> None:
    with serving(weights, workers=2) as stopping, ThreadPoolExecutor(9) as pool:
        kept = httpx.Client(base_url=stopping.url, timeout=30)
        assert kept.post("/generate?model=gan").status_code == 200
        long = pool.submit(httpx.post, f"{stopping.url}/generate?model=ddpm&steps=400", timeout=60)
        wait_for_accepted(stopping, 2)
        stopping.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        told = [kept.post("/generate?model=gan"), httpx.post(f"{stopping.url}/generate?model=gan", timeout=30)]
        ready = httpx.get(f"{stopping.url}/readyz", timeout=30)
        assert stopping.process.wait(30) == 0
        kept.close()
    assert long.result().status_code == 200
    assert ready.status_code == 503
    for answer in told:
        assert answer.status_code == 503
        assert answer.headers["retry-after"].isdigit()
        assert answer.headers["connection"] == "close"


def test_under_load_every_request_is_answered_until_the_end(weights: Path) -> None:
    answers: list[int] = []

    def ask(at: str) -> None:
        with httpx.Client(base_url=at, timeout=30) as client:
            while True:
                try:
                    answers.append(client.post("/generate?model=ddpm&steps=20").status_code)
                except httpx.ConnectError:  # it is gone: this one was never accepted
                    return
                if answers[-1] == 503:
                    return

    with serving(weights, workers=2) as stopping, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(ask, stopping.url) for _ in range(16)]
        time.sleep(1)
        stopping.process.send_signal(signal.SIGTERM)
        for call in calls:
            call.result()
        assert stopping.process.wait(30) == 0
    assert set(answers) == {200, 503}


def test_a_second_signal_does_not_wait(weights: Path) -> None:
    with serving(weights) as stopping, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.post, f"{stopping.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(stopping)
        stopping.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        stopping.process.send_signal(signal.SIGINT)
        assert stopping.process.wait(5) == 1
        assert call.result().status_code == 503


def test_health_and_metrics_can_have_a_port_of_their_own(weights: Path) -> None:
    with serving(weights, admin_port=0) as server:
        at = next(found[1] for line in server.lines if (found := re.search(r"operations on (http://[\d.:]+)", line)))
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(f"{at}{path}", timeout=30).status_code == 200
            assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 404
        assert httpx.post(f"{at}/generate?model=gan", timeout=30).status_code == 404


def test_who_sends_slowly_or_too_much_is_let_go(weights: Path) -> None:
    with serving(weights, header_timeout=0.3, body_timeout=0.3) as server:
        where = httpx.URL(server.url)
        for sent, expected in (
            (b"", b""),
            (b"GET /livez HTTP/1.1\r\nHost:", b"HTTP/1.1 408"),
            (
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
                b"HTTP/1.1 408",
            ),
            (b"GET /livez HTTP/1.1\r\nX-A: " + b"a" * 40_000, b"HTTP/1.1 431"),
        ):
            with socket.create_connection((where.host, where.port), timeout=10) as slow:
                slow.sendall(sent)
                assert slow.recv(100).startswith(expected)
        assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200


def test_no_more_than_the_bounds_is_read_however_it_comes_and_nobody_holds_a_connection(weights: Path) -> None:
    bounds = {
        "header_timeout": 1,
        "body_timeout": 1,
        "write_timeout": 2,
        "keep_alive_timeout": 2,
        "max_body_bytes": 2**20,
    }
    with serving(weights, unconditional_model="gan", conditional_model="cgan", **bounds) as server:
        with ThreadPoolExecutor(len(EXCHANGES)) as pool:
            results = list(pool.map(lambda exchange: run_exchange(server.url, exchange), EXCHANGES))
        pairs = zip(EXCHANGES, results, strict=True)
        assert not [(exchange.name, result) for exchange, result in pairs if result not in exchange.allowed]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"port": "http"}, "DRAWBRIDGE_PORT: "),
        ({"port": 70000}, "DRAWBRIDGE_PORT: "),
        ({"max_batch_size": 0}, "DRAWBRIDGE_MAX_BATCH_SIZE: "),
        ({"max_batch_size": 48}, "48 is not a power of two; 32 is"),
        ({"device": "tpu"}, "DRAWBRIDGE_DEVICE: "),
        ({"device": "cuda"}, "torch sees no GPU"),
        ({"host": "0.0.0.0"}, "DRAWBRIDGE_ALLOW_ANONYMOUS=true"),
        ({"allow_anonymous": "true", "keys": "keys.toml"}, "keep one of them"),
        ({"keys": "/nowhere/keys.toml"}, "service key NAME"),
        ({"weights": "/nowhere"}, "DRAWBRIDGE_WEIGHTS: /nowhere is not a directory"),
        ({"max_images": 9000}, "more than DRAWBRIDGE_QUEUE_IMAGES"),
        ({"admin_port": 8000}, "are both 8000"),
        ({"prot": 8000}, "no such setting; did you mean DRAWBRIDGE_PORT?"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_exit_2(settings: dict[str, object], complaint: str) -> None:
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_ends_with_a_line_that_says_so(server: Server, weights: Path) -> None:
    port = httpx.URL(server.url).port
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment(weights=weights, port=port, device="cpu"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_every_setting_has_a_help_text() -> None:
    assert all(field.description for field in Settings.model_fields.values())


STUCK = """
import asyncio, sys, time
from service import app
from service.telemetry import log
from service.engine.loops import LoopDriver, ThreadDriver
from service.engine.request import Point, Request, Sample
from service.settings import Settings

app.LoopDriver = {"loop": LoopDriver, "thread": ThreadDriver}[sys.argv[1]]

async def main():
    settings = Settings(watchdog_timeout=1)
    log.configure(settings)
    made = app.create_app(settings)
    async with made.router.lifespan_context(made):
        watch = asyncio.create_task(made.watch())
        await asyncio.sleep(1.5)  # idle is not stuck
        model = made.state.service.engine.catalog.models["gan"]
        model.runner.advance = lambda rows: time.sleep(60)
        made.state.service.engine.submit(Request(model.key, (Sample(Point(0, 0)),), 1))
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(("driver", "said"), [("loop", "Timeout (0:00:01)!"), ("thread", "a step on the device")])
def test_a_step_that_does_not_end_ends_its_worker(weights: Path, driver: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, driver],
        cwd=ROOT,
        env=environment(weights=weights, device="cpu", max_batch_size=4) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
