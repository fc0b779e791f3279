"""The supervisor: one port, several workers, and no lost request when a worker dies."""

import io
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from harness.scraping import metric_value, parse_metrics
from harness.server import Server, environment, run_server
from service.server import serve
from service.settings import Settings
from tests.serving import connections_of, serving, wait_for

WORKERS = 2


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights, workers=WORKERS) as server:
        yield server


def wait_for_connection(server: Server) -> int:
    """Wait until a worker has the only connection, and return the worker."""
    owners: list[int] = []

    def has_one() -> bool:
        owners[:] = [pid for pid in server.workers for _ in range(connections_of(pid))]
        return len(owners) == 1

    wait_for(has_one)
    return owners[0]


def kill(server: Server, pid: int) -> None:
    """Kill a worker."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in server.workers)


def client_address(response: httpx.Response) -> Any:
    """The client's end of the connection, which tells connections apart."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


# -- distribution ------------------------------------------------------------------------------------------------------


def test_connections_are_distributed_evenly_and_all_workers_give_the_same_bytes(server: Server) -> None:
    clients = [httpx.Client(base_url=server.url, timeout=30) for _ in range(12)]
    with ThreadPoolExecutor(len(clients)) as pool:
        responses = list(pool.map(lambda client: client.post("/generate?model=cgan&seed=5&digit=7"), clients))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert [connections_of(pid) for pid in server.workers] == [6, 6]
    for client in clients:
        client.close()


def test_the_supervisor_does_not_load_torch(server: Server) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_silent_connection_does_not_block_others(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as silent:
        assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent.recv(64).startswith(b"HTTP/1.1 200")


def test_headers_that_arrive_in_pieces_are_limited(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=5) as connection:
        for piece in (b"GET /livez HTTP/1.1\r\nX-A: ", b"a" * 20_000, b"a" * 20_000):
            connection.sendall(piece)
            time.sleep(0.1)
        assert connection.recv(64).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(("threads", "expected"), [(1, len(os.sched_getaffinity(0))), (10_000, 1)])
def test_there_is_a_worker_per_threads_cores(threads: int, expected: int) -> None:
    assert serve.process_counts(Settings(device="cpu", threads=threads)) == (min(serve.MAX_CPU_WORKERS, expected), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        serve.process_counts(Settings(device="cuda"))


@pytest.mark.slow
def test_connections_wait_while_no_worker_can_take_them(weights: Path) -> None:
    with serving(weights) as server:
        (worker,) = server.workers
        address = httpx.URL(server.url)
        os.kill(worker, signal.SIGSTOP)
        # The worker's control socket holds the descriptors of 278 connections.
        waiting = [socket.create_connection((address.host, address.port)) for _ in range(600)]
        for connection in waiting:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        os.kill(worker, signal.SIGCONT)
        for connection in waiting:
            with connection:
                connection.settimeout(30)
                assert connection.recv(64).startswith(b"HTTP/1.1 200")


# -- a worker dies -----------------------------------------------------------------------------------------------------


def count_metrics(server: Server) -> tuple[float, float]:
    """Delivered images of `gan`, and dead workers."""
    samples = parse_metrics(httpx.get(f"{server.url}/metrics", timeout=30).text)
    return metric_value(samples, "images_total", model="gan"), metric_value(samples, "worker_deaths_total")


def test_a_worker_that_dies_under_load_loses_no_request_and_is_replaced(server: Server) -> None:
    for _ in range(6):  # each on a connection of its own, so both workers get some
        assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
    images, deaths = count_metrics(server)
    assert {count_metrics(server) for _ in range(4)} == {(images, deaths)}, "every worker has the metrics of all"

    urls = [f"/generate?model={model}&seed={seed}" for model in ("cgan&digit=3", "ddpm&steps=20") for seed in range(8)]
    expected = {url: httpx.post(server.url + url, timeout=30).content for url in urls}
    started, finish = threading.Barrier(17), threading.Event()

    def send_requests(first: int) -> tuple[int, int]:
        right = wrong = 0
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for url in itertools.islice(itertools.cycle(urls), first, None):
                response = client.post(url)
                same = response.status_code == 200 and response.content == expected[url]
                right, wrong = right + same, wrong + (not same)
                if right + wrong == 1:
                    started.wait(60)
                if finish.is_set():
                    return right, wrong
        raise AssertionError

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(send_requests, first) for first in range(16)]
        started.wait(60)
        time.sleep(0.5)
        kill(server, min(server.workers))
        wait_for(lambda: len(server.workers) == WORKERS)
        time.sleep(0.5)
        finish.set()
        counts = [client.result() for client in clients]
    assert sum(wrong for _, wrong in counts) == 0
    assert sum(right for right, _ in counts) >= len(clients)
    pattern = r"exited with status -9 and is restarted; requests taken over by other workers: (\d+)"
    taken_over = [int(match[1]) for line in server.lines if (match := re.search(pattern, line))]
    assert sum(taken_over) > 0
    assert count_metrics(server) == (images, deaths + 1), "the counts of a dead worker stay"


def test_an_idle_connection_survives_its_worker(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        first = client.post("/generate?model=gan&seed=1")
        address = client_address(first)
        kill(server, wait_for_connection(server))
        second = client.post("/generate?model=gan&seed=1")
        assert client_address(second) == address
    assert second.content == first.content


def test_a_response_that_has_started_is_cut_off_with_its_worker(server: Server) -> None:
    url = f"{server.url}/generate?model=ddpm&n=64&steps=300&format=zip"
    with httpx.stream("POST", url, timeout=60) as response:
        parts = response.iter_raw()
        next(parts)
        kill(server, wait_for_connection(server))
        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)


@pytest.mark.slow
def test_an_upload_survives_its_worker(server: Server) -> None:
    picture, buffer = np.zeros((28, 28), np.uint8), io.BytesIO()
    picture[4:24, 12:16] = 255
    Image.fromarray(picture).save(buffer, "PNG")
    # So many steps that the request lasts while the test looks for its worker.
    form = {
        "files": {"image": ("one.png", buffer.getvalue())},
        "params": {"model": "ddpm", "seed": 1, "n": 8, "steps": 500, "strength": 1},
    }
    expected = httpx.post(f"{server.url}/vary", **form, timeout=60)
    assert expected.status_code == 200, expected.text
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(httpx.post, f"{server.url}/vary", **form, timeout=60)
        pid = wait_for_connection(server)
        time.sleep(0.05)
        kill(server, pid)
        assert response.result().content == expected.content


@pytest.mark.slow
def test_a_request_that_was_in_two_dying_workers_gets_503(server: Server) -> None:
    wait_for(lambda: len(server.workers) == WORKERS)
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        for _ in range(2):
            pid = wait_for_connection(server)
            time.sleep(0.1)
            kill(server, pid)
        refused = response.result()
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert refused.json()["type"] == "urn:drawbridge:problem:unavailable"
    assert refused.json()["detail"] == "two workers crashed while running this request; it is not retried"
    assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200


MORTAL = """
import os, signal, sys
from pathlib import Path
from service.server import serve
from service.settings import read_settings
from service.telemetry import log

if not sys.argv[2:]:
    settings = read_settings()
    log.configure(settings)
    sys.exit(serve.serve(settings, sys.orig_argv))

from service.server import worker
from service.server.journal import Journal
from service.server.transport import BufferedTransport

moment = Path(sys.argv[1])

def die_at(current):
    if moment.read_text() == current:
        moment.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)

def make_mortal(kind, name):
    method = getattr(kind, name)
    def mortal(*args):
        die_at(f"before {name}")
        result = method(*args)
        die_at(f"after {name}")
        return result
    setattr(kind, name, mortal)

make_mortal(Journal, "commit")
make_mortal(BufferedTransport, "write_buffered")
make_mortal(Journal, "mark_answered")
worker.main(*sys.argv[2:])
"""
"""The service, whose workers die at the moment that a file names."""


@pytest.mark.slow
def test_a_worker_can_die_at_any_moment_without_losing_a_request_or_connection(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gan").symlink_to(weights / "gan")
    moment = tmp_path / "moment"
    moment.touch()
    settings = environment(weights=tmp_path / "weights", port=0, device="cpu", workers=WORKERS)
    with (
        run_server([sys.executable, "-c", MORTAL, str(moment)], settings) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        first = client.post("/generate?model=gan&seed=1")
        address = client_address(first)
        for when in ("before commit", "after write_buffered", "before mark_answered", "after mark_answered"):
            moment.write_text(when)
            for body in ({}, {"json": {}}):
                response = client.post("/generate?model=gan&seed=1", **body)
                assert response.content == first.content, when
                assert client_address(response) == address, when
            assert moment.read_text() == "", f"no worker died {when}"


@pytest.mark.slow
def test_a_worker_that_drains_finishes_its_requests_and_gets_no_new_ones(weights: Path) -> None:
    with serving(weights, workers=WORKERS) as server, ThreadPoolExecutor(WORKERS) as pool:
        query = {"model": "ddpm", "seed": 1, "n": 2, "steps": 1000}
        accepted = [pool.submit(httpx.post, f"{server.url}/generate", params=query, timeout=90) for _ in range(WORKERS)]
        time.sleep(0.5)  # they have started and are far from finished
        os.kill(min(server.workers), signal.SIGTERM)
        time.sleep(0.2)
        responses = [httpx.post(f"{server.url}/generate?model=gan", timeout=30) for _ in range(10)]
        assert {response.status_code for response in responses} == {200}
        assert not any(response.done() for response in accepted)
        assert [response.result().status_code for response in accepted] == [200] * WORKERS


# -- starting and reloading workers ------------------------------------------------------------------------------------

SUPERVISOR = """
import logging, socket, sys
from pathlib import Path
from service.server import supervisor
from service.server.messages import CONNECTION

logging.basicConfig(format="%(message)s", level=logging.INFO)
supervisor.RESTART_DELAY = 0.1
listener = socket.create_server(("127.0.0.1", 0))
listener.setblocking(False)
command = (sys.executable, "-c", sys.argv[1])
running = supervisor.Supervisor({CONNECTION: listener}, 2, Path("."), drain_timeout=5, command=command)
status = running.run()
running.stop()
sys.exit(status)
"""
"""A supervisor of two workers that run a script."""
IDLE_WORKER = """
import socket, sys
from pathlib import Path
from service.server.messages import READY, pack

if Path({!r}).exists():
    sys.exit(3)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(pack(READY))
control.recv(1)
"""
"""A worker that does nothing, and cannot start while a file exists."""
SLOW_WORKER = """
import socket, sys, time
from service.server.messages import READY, pack

time.sleep(1)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(pack(READY))
while command := control.recv(100):
    with open({!r}, "a") as file:
        file.write(sys.argv[2] + command[:1].decode())
"""
"""A worker that starts slowly and writes its index and the kind of each message to a file."""


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Server]:
    """A supervisor whose workers cannot start while there is a file called `broken`."""
    with run_server(
        [sys.executable, "-c", SUPERVISOR, IDLE_WORKER.format(str(tmp_path / "broken"))], loaded=False
    ) as server:
        yield server


def test_a_worker_that_fails_to_start_is_retried_while_others_serve(idle: Server, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    os.kill(min(idle.workers), signal.SIGKILL)
    wait_for(lambda: sum("failed to start; it exited with status 3" in line for line in idle.lines) > 1)
    assert idle.process.poll() is None
    (tmp_path / "broken").unlink()
    wait_for(lambda: len(idle.workers) == WORKERS)


def test_the_supervisor_exits_when_no_worker_can_start(idle: Server, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    for worker in idle.workers:
        os.kill(worker, signal.SIGKILL)
    assert idle.process.wait(60) == 1


@pytest.mark.slow
def test_a_worker_that_starts_during_a_reload_reloads_once_it_is_ready(tmp_path: Path) -> None:
    messages = tmp_path / "messages"
    messages.touch()
    with run_server([sys.executable, "-c", SUPERVISOR, SLOW_WORKER.format(str(messages))], loaded=False) as server:
        os.kill(killed := max(server.workers), signal.SIGKILL)
        wait_for(lambda: len(set(server.workers) - {killed}) == WORKERS)
        os.kill(server.process.pid, signal.SIGHUP)
        wait_for(lambda: sorted(messages.read_text()[1::2]) == ["w", "w"], 10)
        assert sorted(messages.read_text()[::2]) == ["0", "1"]


def test_workers_exit_when_the_supervisor_dies(server: Server) -> None:
    """The last test of this module: it kills the service that the others use."""
    wait_for(lambda: len(server.workers) == WORKERS)
    workers = server.workers
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
