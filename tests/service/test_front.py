"""The front: one port, many workers, and what happens when one of them dies."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service import front
from service.settings import Settings
from tests.serving import Server, serving

WORKERS = 2


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights, workers=WORKERS) as running:
        yield running


def workers(server: Server) -> set[int]:
    """The processes that the front keeps."""
    listed = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return set(map(int, listed.split()))


def sockets(pid: int) -> int:
    """The internet connections of a process."""
    inodes = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()}
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return sum(f"socket:[{line.split()[9]}]" in inodes for line in table)


def test_connections_are_dealt_evenly_and_every_worker_draws_the_same(server: Server) -> None:
    clients = [httpx.Client(base_url=server.url, timeout=30) for _ in range(12)]
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(lambda client: client.post("/generate?model=cgan&seed=5&digit=7"), clients))
    assert len({answer.content for answer in answers}) == 1
    assert {answer.status_code for answer in answers} == {200}
    assert [sockets(pid) for pid in workers(server)] == [6, 6]
    for client in clients:
        client.close()


def test_a_worker_that_dies_takes_its_own_callers_with_it_and_is_replaced(server: Server) -> None:
    time.sleep(front.SHORT_LIFE)
    before = workers(server)
    assert len(before) == WORKERS
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (victim in workers(server) or len(workers(server)) < WORKERS):
        time.sleep(0.1)
    answers = [httpx.post(f"{server.url}/generate?model=gan", timeout=30) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len(workers(server)) == WORKERS
    assert any(re.search(r"worker \d ended with status -9, and is started anew", line) for line in server.lines)


def test_workers_without_a_front_end_too(weights: Path) -> None:
    with serving(weights, workers=1) as alone:
        (worker,) = workers(alone)
        alone.process.kill()
        alone.process.wait()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and Path(f"/proc/{worker}").exists():
            time.sleep(0.1)
        assert not Path(f"/proc/{worker}").exists()


def test_a_connection_that_says_nothing_keeps_nobody_waiting(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as silent:
        assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("threads", "expected"), [(1, len(os.sched_getaffinity(0))), (10_000, 1)])
def test_a_cpu_gets_a_worker_for_each_core_that_a_step_s_threads_leave(threads: int, expected: int) -> None:
    assert front.workers(Settings(device="cpu", threads=threads)) == min(front.MOST_CORES, expected)
