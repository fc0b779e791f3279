"""The front: one port, many workers, and what happens when one of them dies."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.scraping import number, scraped
from benchmarks.server import Server, running
from service import front
from service.settings import Settings
from tests.serving import serving

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


def test_the_front_is_small(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps, "it draws nothing"


def test_a_worker_that_dies_takes_its_own_callers_with_it_and_is_replaced(server: Server) -> None:
    before = workers(server)
    assert len(before) == WORKERS
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in workers(server) and len(workers(server)) == WORKERS)
    answers = [httpx.post(f"{server.url}/generate?model=gan", timeout=30) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len(workers(server)) == WORKERS
    assert any(re.search(r"worker \d ended with status -9, and is started anew", line) for line in server.lines)


def test_a_worker_that_drains_ends_what_it_has_and_is_handed_nothing_more(weights: Path) -> None:
    with serving(weights, workers=WORKERS) as here, ThreadPoolExecutor(WORKERS) as pool:
        query = {"model": "ddpm", "seed": 1, "steps": 500}
        long = [pool.submit(httpx.post, f"{here.url}/generate", params=query, timeout=60) for _ in range(WORKERS)]
        time.sleep(0.5)  # long enough to have begun, and far from done
        os.kill(min(workers(here)), signal.SIGTERM)
        time.sleep(0.2)
        answers = [httpx.post(f"{here.url}/generate?model=gan", timeout=30) for _ in range(10)]  # a connection each
        assert {answer.status_code for answer in answers} == {200}
        assert not any(answer.done() for answer in long)
        assert [answer.result().status_code for answer in long] == [200] * WORKERS


def test_connections_wait_while_no_worker_can_take_them(weights: Path) -> None:
    with serving(weights) as here:
        (worker,) = workers(here)
        at = httpx.URL(here.url)
        os.kill(worker, signal.SIGSTOP)
        waiting = [socket.create_connection((at.host, at.port)) for _ in range(600)]  # a queue of descriptors has 278
        for connection in waiting:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        os.kill(worker, signal.SIGCONT)
        for connection in waiting:
            with connection:
                connection.settimeout(30)
                assert connection.recv(64).startswith(b"HTTP/1.1 200")


FRONT = """
import logging, pathlib, socket, sys
from service import front
logging.basicConfig(format="%(message)s", level=logging.INFO)
front.COMMAND, front.PAUSE = (sys.executable, "-c", sys.argv[1]), 0.1
listener = socket.create_server(("127.0.0.1", 0))
listener.setblocking(False)
keeper = front.Front({front.HANDED: listener}, 2, pathlib.Path("."), grace=5)
status = keeper.run()
keeper.stop()
sys.exit(status)
"""
WORKER = """
import pathlib, socket, sys
if pathlib.Path({!r}).exists():
    sys.exit(3)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(b"r")
control.recv(1)
"""


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Server]:
    """A front whose workers do nothing, and cannot start while there is a file called `broken`."""
    command = [sys.executable, "-c", FRONT, WORKER.format(str(tmp_path / "broken"))]
    with running(command) as server:
        yield server


def test_a_worker_that_cannot_be_replaced_is_tried_again_while_others_serve(idle: Server, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    os.kill(min(workers(idle)), signal.SIGKILL)
    wait_for(lambda: sum("could not start; it ended with status 3" in line for line in idle.lines) > 1)
    assert idle.process.poll() is None
    (tmp_path / "broken").unlink()
    wait_for(lambda: len(workers(idle)) == WORKERS)


def test_a_front_ends_once_no_worker_can_start(idle: Server, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    for worker in workers(idle):
        os.kill(worker, signal.SIGKILL)
    assert idle.process.wait(60) == 1


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_without_a_front_end_too(weights: Path) -> None:
    with serving(weights, workers=1) as alone:
        (worker,) = workers(alone)
        alone.process.kill()
        alone.process.wait()
        wait_for(lambda: not Path(f"/proc/{worker}").exists())


def test_a_connection_that_says_nothing_keeps_nobody_waiting(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as silent:
        assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("threads", "expected"), [(1, len(os.sched_getaffinity(0))), (10_000, 1)])
def test_a_cpu_gets_a_worker_for_each_core_that_a_step_s_threads_leave(threads: int, expected: int) -> None:
    assert front.workers(Settings(device="cpu", threads=threads)) == min(front.MOST_CORES, expected)


def test_one_worker_answers_for_all(weights: Path) -> None:
    with serving(weights, workers=2) as server:
        for _ in range(6):  # a connection each
            assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
        pages = [scraped(httpx.get(f"{server.url}/metrics", timeout=30).text) for _ in range(4)]
        assert {number(page, "images_total", model="gan") for page in pages} == {6}
        os.kill(min(workers(server)), signal.SIGKILL)
        wait_for(lambda: any("started anew" in line for line in server.lines) and len(workers(server)) == 2)
        page = scraped(httpx.get(f"{server.url}/metrics", timeout=30).text)
        assert number(page, "worker_deaths_total") == 1
        assert number(page, "images_total", model="gan") == 6, "what the dead one counted stays counted"


SLOW = """
import pathlib, socket, sys, time
time.sleep(1)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(b"r")
while said := control.recv(1):
    with open({!r}, "a") as file:
        file.write(sys.argv[2] + said.decode())
"""


def test_a_worker_that_was_starting_when_new_weights_came_is_told_once_it_has(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.touch()
    with running([sys.executable, "-c", FRONT, SLOW.format(str(told))]) as server:
        os.kill(dead := max(workers(server)), signal.SIGKILL)
        wait_for(lambda: len(set(workers(server)) - {dead}) == WORKERS)
        os.kill(server.process.pid, signal.SIGHUP)
        wait_for(lambda: sorted(told.read_text()[1::2]) == ["w", "w"], 10)
        assert sorted(told.read_text()[::2]) == ["0", "1"]
