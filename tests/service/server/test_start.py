"""The first seconds of a service: probes are answered at once, and requests wait for a worker and their model."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from harness.scraping import metric_value, parse_metrics
from harness.server import ROOT, SERVICE, children, environment, free_port, run_server
from service.api.startup import StartupProbes
from service.auth import keys
from tests.serving import connections_of

NAMES = ("cgan", "gan")
SLOW = """
import sys, time
from pathlib import Path
from service.server import serve
from service.settings import read_settings

worker = '''
import sys, time
from pathlib import Path

while not Path({path!r}).exists():
    time.sleep(0.01)
from service.server import worker

worker.main(*sys.argv[1:])
'''
sys.exit(serve.serve(read_settings(), (sys.executable, "-c", worker.format(path=sys.argv[1]))))
"""
"""The service with workers that do not start before a file exists."""


@pytest.fixture
def root(weights: Path, tmp_path: Path) -> Path:
    """Two models, and room for other files."""
    (tmp_path / "weights").mkdir()
    for name in NAMES:
        (tmp_path / "weights" / name).symlink_to(weights / name)
    return tmp_path


@contextmanager
def slow_service(root: Path, **settings: object) -> Iterator[tuple[str, int]]:
    """URL and process id of a service whose two workers do not start before the file `go` exists."""
    port = free_port()
    settings = {"weights": root / "weights", "port": port, "device": "cpu", "workers": 2} | settings
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(root / "go")], cwd=ROOT, env=environment(**settings), stderr=subprocess.PIPE
    )
    try:
        wait_for_port(int(settings.get("admin_port", port)))
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)


def open_connection(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=60)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as connection:
            if not connection.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.01)
    raise TimeoutError


def test_probes_are_answered_before_any_worker_has_started_and_requests_wait(root: Path) -> None:
    with ThreadPoolExecutor(12) as pool, slow_service(root) as (url, pid):
        clients = [httpx.Client(base_url=url, timeout=60) for _ in range(6)]
        waiting = [pool.submit(client.get, f"/generate?model={name}&seed=1") for client in clients for name in NAMES]
        silent = open_connection(url)
        for sent in (b"", b"GET /generate?model=gan HTTP/1.1\r\n"):
            with open_connection(url) as gone:
                gone.sendall(sent)
        live = httpx.get(f"{url}/livez")
        assert (live.status_code, live.json()) == (200, {"status": "alive"})
        ready = httpx.get(f"{url}/readyz")
        assert ready.status_code == 503
        assert ready.json() == {"status": "not ready", "models": dict.fromkeys(NAMES, "loading"), "broken": {}}
        assert ready.headers["cache-control"] == "no-store"
        assert httpx.head(f"{url}/readyz").status_code == 503
        assert httpx.get(f"{url}/readyz?model=gan").json()["models"] == {"gan": "loading"}
        unknown = httpx.get(f"{url}/readyz?model=nope")
        assert unknown.status_code == 404
        assert unknown.json()["type"] == "urn:drawbridge:problem:unknown-model"
        assert metric_value(parse_metrics(httpx.get(f"{url}/metrics").text), "worker_deaths_total") == 0
        assert not any(response.done() for response in waiting)
        (root / "go").touch()
        assert {response.result().status_code for response in waiting} == {200}
        with silent:
            silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert silent.recv(64).startswith(b"HTTP/1.1 200")
            connections = [connections_of(worker) for worker in children(pid)]
            assert max(connections) - min(connections) <= 1
        for client in clients:
            client.close()


def test_probes_at_the_start_are_at_the_port_that_has_them_later(root: Path) -> None:
    admin_port = free_port()
    with ThreadPoolExecutor(1) as pool, slow_service(root, admin_port=admin_port) as (url, _):
        waiting = pool.submit(httpx.get, f"{url}/livez", timeout=60)
        for path, status in {"livez": 200, "readyz": 503, "metrics": 200}.items():
            assert httpx.get(f"http://127.0.0.1:{admin_port}/{path}").status_code == status
        assert not waiting.done()
    assert waiting.result().status_code == 503, "the service ended before a worker started"


def test_metrics_that_need_a_key_wait_for_a_worker(root: Path) -> None:
    key = keys.add(root / "keys.toml", "monitoring", {})
    with ThreadPoolExecutor(1) as pool, slow_service(root, keys=root / "keys.toml") as (url, _):
        waiting = pool.submit(httpx.get, f"{url}/metrics", headers={"X-API-Key": key}, timeout=60)
        for path, status in {"livez": 200, "readyz": 503}.items():
            assert httpx.get(f"{url}/{path}").status_code == status
        assert not waiting.done()
    assert waiting.result().status_code == 503, "the service ended before a worker started"


def test_a_shutdown_before_the_workers_have_started_refuses_waiting_requests(root: Path) -> None:
    with slow_service(root) as (url, _):
        waiting = open_connection(url)
        waiting.sendall(b"GET /generate?model=gan HTTP/1.1\r\nHost: x\r\n\r\n")
        assert httpx.get(f"{url}/livez").status_code == 200
    with waiting:
        assert waiting.recv(64).startswith(b"HTTP/1.1 503")


def test_requests_right_after_the_start_get_their_models(weights: Path) -> None:
    settings = environment(weights=weights, port=0, device="cpu", max_batch_size=8, workers=1)
    with run_server(SERVICE, settings, loaded=False) as server, ThreadPoolExecutor(8) as pool:
        names = sorted(path.name for path in weights.iterdir())
        urls = [f"{server.url}/generate?model={name}&seed=3" for name in names]
        early = list(pool.map(lambda url: httpx.get(url, timeout=60), urls))
        assert {response.status_code for response in early} == {200}
        server.wait_until_loaded()
        late = [httpx.get(url, timeout=60) for url in urls]
        assert [r.content for r in early] == [r.content for r in late]
        assert [r.headers["etag"] for r in early] == [r.headers["etag"] for r in late]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n",
        b"POST /livez HTTP/1.1\r\n\r\n",
        b"GET /generate HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"\xff\x00\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_complete_probe_is_left_to_a_worker(head: bytes) -> None:
    assert StartupProbes(lambda: ["gan"], None).respond(head) is None


def test_a_probe_for_a_version_of_a_model_asks_for_the_model() -> None:
    response = StartupProbes(lambda: ["gan"], None).respond(b"GET /readyz?model=gan@12ab HTTP/1.1\r\n\r\n")
    assert response is not None
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert json.loads(body)["models"] == {"gan@12ab": "loading"}
