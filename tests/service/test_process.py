"""The service as a process: a real server on a real socket."""

import signal
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

from models import families
from service.settings import Settings
from tests.serving import ROOT, Server, environment, serving


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights) as running:
        yield running


def test_two_processes_draw_the_same_bytes(server: Server, weights: Path) -> None:
    with serving(weights, seats=32) as other:
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
        threading.Event().wait(0.5)
        stopping.process.send_signal(signal.SIGTERM)
        call.join()
    # Uvicorn ends itself with the signal it was sent, once it is done.
    assert stopping.process.returncode in (0, -signal.SIGTERM), "".join(stopping.lines)
    assert any("Application shutdown complete" in line for line in stopping.lines)
    assert [answer.status_code for answer in answers] == [200]


def test_what_does_not_end_in_time_after_a_signal_is_answered_all_the_same(weights: Path) -> None:
    with serving(weights, drain_seconds=0.5) as stopping, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.post, f"{stopping.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        time.sleep(0.5)
        stopping.process.send_signal(signal.SIGTERM)
        answer = call.result()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "shut down before this was drawn" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"port": "http"}, "DRAWBRIDGE_PORT: "),
        ({"port": 70000}, "DRAWBRIDGE_PORT: "),
        ({"seats": 0}, "DRAWBRIDGE_SEATS: "),
        ({"seats": 48}, "48 is no power of two; 32 is"),
        ({"device": "tpu"}, "DRAWBRIDGE_DEVICE: "),
        ({"device": "cuda"}, "torch sees no GPU"),
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
    assert done.stderr.endswith(f"cannot listen on 127.0.0.1 port {port}: Address already in use\n")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_every_setting_has_a_help_text() -> None:
    assert all(field.description for field in Settings.model_fields.values())
