"""The service in one process, where the calls that the supervisor needs are missing."""

import io
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from harness.scraping import metric_value, parse_metrics
from harness.server import Server, environment, run_server
from service.auth import keys
from service.server import serve
from tests.service.conftest import problem
from tests.serving import serving, wait_for, wait_for_accepted

SCRIPT = Path(__file__).with_name("single_process.py")


@contextmanager
def single_process(weights: Path, **settings: object) -> Iterator[Server]:
    """A service without the calls of Linux that the supervisor needs."""
    settings = {"weights": weights, "port": 0, "device": "cpu", "max_batch_size": 8} | settings
    with run_server([sys.executable, str(SCRIPT)], environment(**settings)) as server:
        yield server


@pytest.fixture(scope="module")
def weights_copy(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that a test may change."""
    root = tmp_path_factory.mktemp("served")
    for name in ("gan", "cgan", "ddpm", "vae"):
        shutil.copytree(weights / name, root / name)
    return root


class KeyFile:
    """A key file, and the headers with its first key, which has limits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers = {"X-API-Key": keys.add(path, "lab", {"images": "1000/day", "concurrent": 9})}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.toml")


@pytest.fixture(scope="module")
def server(weights_copy: Path, key_file: KeyFile) -> Iterator[Server]:
    """A service in one process, with keys, an admin port and polled weights."""
    with single_process(weights_copy, keys=key_file.path, admin_port=0, weights_poll_interval=0.2) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server, key_file: KeyFile) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=key_file.headers, timeout=30) as client:
        yield client


def admin_url(server: Server) -> str:
    """The URL of the admin port."""
    return next(match[1] for line in server.lines if (match := re.search(r"admin port on (http://[\d.:]+)", line)))


def test_one_line_says_that_one_process_serves(server: Server) -> None:
    lines = [line for line in server.lines if "serving from one process" in line]
    assert len(lines) == 1
    assert "darwin has no connection hand-over" in lines[0]
    assert not server.workers


def picture() -> bytes:
    """An upload that is not 28x28."""
    pixels = np.zeros((60, 40), np.uint8)
    pixels[10:50, 15:25] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "query": ("/generate?model=cgan&digit=7&seed=5", {}),
    "json": ("/generate", {"json": {"model": "ddpm", "digit": [3], "seed": 5, "n": 3, "steps": 4}}),
    "stream": ("/generate?model=cgan&seed=6&n=40&format=zip", {}),
    "interpolation": ("/interpolate?model=gan&seed=1&seed=2&frames=5&format=npz", {}),
    "upload": ("/reconstruct?model=vae&format=npz", {"files": {"image": ("digit.png", picture(), "image/png")}}),
}


def test_responses_have_the_bytes_of_a_supervised_service(client: httpx.Client, weights_copy: Path) -> None:
    with serving(weights_copy) as supervised:
        for name, (path, body) in REQUESTS.items():
            expected = httpx.post(supervised.url + path, timeout=30, **body)
            response = client.post(path, **body)
            assert response.status_code == expected.status_code == 200, response.text
            assert response.content == expected.content, name


def test_concurrent_requests_share_batches(client: httpx.Client) -> None:
    def generate(seed: int) -> httpx.Response:
        return client.post(f"/generate?model=ddpm&steps=100&seed={seed}")

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(generate, range(6)))
    assert {response.status_code for response in responses} == {200}
    assert max(int(response.headers["x-batch"]) for response in responses) > 1


def test_health_and_metrics_are_at_the_admin_port(server: Server, client: httpx.Client) -> None:
    admin = admin_url(server)
    ready = httpx.get(f"{admin}/readyz", timeout=30)
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert client.post("/generate?model=gan").status_code == 200
    samples = parse_metrics(httpx.get(f"{admin}/metrics", timeout=30).text)
    assert metric_value(samples, "images_total", model="gan") >= 1
    assert problem(client.get("/readyz"), 404) == "/readyz is not served on this port"
    problem(httpx.get(f"{admin}/generate?model=gan"), 404)


def test_keys_and_their_limits_apply(server: Server, client: httpx.Client) -> None:
    problem(httpx.get(f"{server.url}/models"), 401, "unauthorized")
    before, after = (
        int(re.findall(r'"images";r=(\d+)', client.post("/generate?model=gan&n=5").headers["ratelimit"])[0])
        for _ in range(2)
    )
    assert before - after == 5
    problem(client.post("/generate?model=gan&n=1001"), 429, "quota-used-up")


def test_changed_weights_are_reloaded(client: httpx.Client, weights: Path, weights_copy: Path) -> None:
    new = client.get("/models/cgan").json()["digest"]
    assert client.get("/models/gan").json()["digest"] != new
    shutil.copytree(weights / "cgan", weights_copy / ".gan")
    shutil.rmtree(weights_copy / "gan")
    (weights_copy / ".gan").rename(weights_copy / "gan")
    wait_for(lambda: client.get("/models/gan").json()["digest"] == new)


def test_sighup_reloads_the_keys(server: Server, key_file: KeyFile) -> None:
    headers = {"X-API-Key": keys.add(key_file.path, "another", {})}
    time.sleep(0.5)  # longer than the interval at which the weights are polled
    problem(httpx.get(f"{server.url}/models", headers=headers), 401)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: httpx.get(f"{server.url}/models", headers=headers).status_code == 200)


def test_sigterm_finishes_accepted_requests_and_refuses_new_ones(server: Server, client: httpx.Client) -> None:
    """The last test that uses the module's server: it ends it."""
    admin = admin_url(server)

    def is_accepted() -> bool:
        samples = parse_metrics(httpx.get(f"{admin}/metrics", timeout=30).text)
        return metric_value(samples, "rows_in_flight") == 1

    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.post, "/generate?model=ddpm&steps=300", timeout=60)
        wait_for(is_accepted)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any("draining" in line for line in server.lines))
        refused = client.post("/generate?model=gan")
        assert accepted.result().status_code == 200
        assert server.process.wait(30) == 0, "".join(server.lines)
    problem(refused, 503, "unavailable")
    assert refused.headers["connection"] == "close"


@pytest.mark.slow
def test_requests_that_exceed_the_drain_timeout_get_503(weights_copy: Path) -> None:
    with single_process(weights_copy, drain_timeout=0.5) as server, ThreadPoolExecutor() as pool:
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(server)
        server.process.send_signal(signal.SIGINT)
        problem(accepted.result(), 503, "unavailable")
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_second_signal_exits_at_once(weights_copy: Path) -> None:
    with single_process(weights_copy) as server, ThreadPoolExecutor() as pool:
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        wait_for_accepted(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any("draining" in line for line in server.lines))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 1
        with pytest.raises(httpx.TransportError):
            accepted.result()


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_this_system_lacks_nothing() -> None:
    assert serve.missing_support() is None


def refuse(*_: object, **__: object) -> None:
    """A call that the system does not allow."""
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(("module", "name"), [(os, "memfd_create"), (socket, "socketpair")])
def test_a_system_that_forbids_a_call_is_served_from_one_process(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(module, name, refuse)
    assert "Operation not permitted" in str(serve.missing_support())


def test_a_kernel_that_counts_no_bytes_is_served_from_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TCP_INFO_BYTES", 1000)
    assert "does not count a connection's bytes" in str(serve.missing_support())


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_served_from_one_process(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(serve, "sys", SimpleNamespace(platform=platform))
    assert str(serve.missing_support()).startswith(f"{platform} has no ")
