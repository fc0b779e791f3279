"""The front: one port, many workers, and what happens when one of them dies."""

import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from harness.scraping import metric_value, parse_metrics
from harness.server import Server, environment, run_server
from service.codecs.png import png
from service.server import supervisor
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


def test_a_worker_that_dies_under_load_loses_no_request_and_is_replaced(server: Server) -> None:
    paths = [f"/generate?model={model}&seed={seed}" for model in ("cgan&digit=3", "ddpm&steps=20") for seed in range(8)]
    alone = {path: httpx.post(f"{server.url}{path}", timeout=30).content for path in paths}
    begun, over = threading.Barrier(17), threading.Event()

    def ask(first: int) -> tuple[int, int]:
        right = wrong = 0
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for path in itertools.islice(itertools.cycle(paths), first, None):
                answer = client.post(path)
                same = answer.status_code == 200 and answer.content == alone[path]
                right, wrong = right + same, wrong + (not same)
                if right + wrong == 1:
                    begun.wait(60)
                if over.is_set():
                    return right, wrong
        raise AssertionError

    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(ask, first) for first in range(16)]
        begun.wait(60)  # on a busy machine none may have asked for seconds
        time.sleep(0.5)
        kill(server, min(workers(server)))
        wait_for(lambda: len(workers(server)) == WORKERS)
        time.sleep(0.5)
        over.set()
        counts = [call.result() for call in calls]
    assert sum(right for right, _ in counts) >= len(calls)
    assert sum(wrong for _, wrong in counts) == 0
    found = [re.search(r"worker \d ended with status -9.* others take over: (\d+)", line) for line in server.lines]
    assert sum(int(match[1]) for match in found if match) > 0


def holder(server: Server, connections: int = 1) -> int:
    """The worker that has so many connections."""
    (pid,) = (pid for pid in workers(server) if sockets(pid) == connections)
    return pid


def kill(server: Server, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in workers(server))


def test_a_connection_outlives_its_worker_between_two_requests(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        first = client.post("/generate?model=gan&seed=1")
        kill(server, holder(server))
        at = client.get("/livez").extensions["network_stream"].get_extra_info("client_addr")
        again = client.post("/generate?model=gan&seed=1")
        assert again.extensions["network_stream"].get_extra_info("client_addr") == at
    assert again.content == first.content


MORTAL = """
import os, signal, sys
from pathlib import Path
from service.server import supervisor
from service.telemetry import log
from service.settings import read
if not sys.argv[2:]:
    log.configure(read())
    sys.exit(supervisor.serve(read(), sys.orig_argv))
from service.server import worker
moment = Path(sys.argv[1])
def reached(when):
    if moment.read_text() == when:
        moment.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
def watch(kind, name):
    act = getattr(kind, name)
    def watched(*given):
        reached(f"before {name}")
        found = act(*given)
        reached(f"after {name}")
        return found
    setattr(kind, name, watched)
watch(worker.Journal, "keep")
watch(worker.Outlet, "hold")
watch(worker.Journal, "answered")
worker.main(*sys.argv[2:])
"""


def test_no_moment_to_die_at_loses_a_request_or_its_connection(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gan").symlink_to(weights / "gan")  # one model, so that workers are soon there again
    moment = tmp_path / "moment"
    moment.touch()
    settings = environment(weights=tmp_path / "weights", port=0, device="cpu", workers=WORKERS)
    with (
        run_server([sys.executable, "-c", MORTAL, str(moment)], settings) as here,
        httpx.Client(base_url=here.url, timeout=30) as client,
    ):
        first = client.post("/generate?model=gan&seed=1")
        at = first.extensions["network_stream"].get_extra_info("client_addr")
        for when in ("before keep", "after hold", "before answered", "after answered"):
            moment.write_text(when)
            answers = [client.post("/generate?model=gan&seed=1") for _ in range(2)]
            assert moment.read_text() == "", f"nobody died {when}"
            assert [answer.content for answer in answers] == [first.content] * 2
            assert answers[-1].extensions["network_stream"].get_extra_info("client_addr") == at


def test_an_upload_outlives_its_worker(server: Server) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)  # which does not shrink
    form = {"files": {"image": ("digit.png", png(noise))}, "params": {"model": "ddpm", "format": "npz"}}
    expected = httpx.post(f"{server.url}/reconstruct", **form, timeout=60).content
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(httpx.post, f"{server.url}/reconstruct", **form, timeout=60)
        wait_for(lambda: sum(map(sockets, workers(server))) == 1)
        time.sleep(0.05)
        kill(server, holder(server))
        assert call.result().content == expected


def test_a_request_whose_second_worker_dies_too_is_told_so(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&n=64&steps=1000", timeout=60)
        for _ in range(2):
            wait_for(lambda: sum(map(sockets, workers(server))) == 1)
            time.sleep(0.1)
            kill(server, holder(server))
        answer = call.result()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "two workers ended" in answer.json()["detail"]
    assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200


def test_an_answer_that_had_begun_is_cut_off_with_its_worker(server: Server) -> None:
    with httpx.stream("POST", f"{server.url}/generate?model=ddpm&n=64&steps=300&format=zip", timeout=60) as answer:
        parts = answer.iter_raw()
        next(parts)
        kill(server, holder(server))
        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)


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
from service.server import supervisor
logging.basicConfig(format="%(message)s", level=logging.INFO)
supervisor.PAUSE = 0.1
listener = socket.create_server(("127.0.0.1", 0))
listener.setblocking(False)
command = (sys.executable, "-c", sys.argv[1])
keeper = supervisor.Front({supervisor.HANDED: listener}, 2, pathlib.Path("."), grace=5, command=command)
status = keeper.run()
keeper.stop()
sys.exit(status)
"""
WORKER = """
import pathlib, socket, sys
from service.server.supervisor import READY, said
if pathlib.Path({!r}).exists():
    sys.exit(3)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(said(READY))
control.recv(1)
"""


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Server]:
    """A front whose workers do nothing, and cannot start while there is a file called `broken`."""
    command = [sys.executable, "-c", FRONT, WORKER.format(str(tmp_path / "broken"))]
    with run_server(command) as server:
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


def test_a_header_that_comes_in_pieces_is_bounded_too(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=5) as connection:
        for piece in (b"GET /livez HTTP/1.1\r\nX-A: ", b"a" * 20_000, b"a" * 20_000):
            connection.sendall(piece)
            time.sleep(0.1)
        assert connection.recv(64).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(("threads", "expected"), [(1, len(os.sched_getaffinity(0))), (10_000, 1)])
def test_a_cpu_gets_a_worker_for_each_core_that_a_step_s_threads_leave(threads: int, expected: int) -> None:
    assert supervisor.default_worker_count(Settings(device="cpu", threads=threads)) == min(
        supervisor.MAX_CPU_WORKERS, expected
    )


def test_one_worker_answers_for_all(server: Server) -> None:
    def counted() -> tuple[float, float]:
        page = parse_metrics(httpx.get(f"{server.url}/metrics", timeout=30).text)
        return metric_value(page, "images_total", model="gan"), metric_value(page, "worker_deaths_total")

    wait_for(lambda: len(workers(server)) == WORKERS)
    drawn, deaths = counted()
    for _ in range(6):  # a connection each
        assert httpx.post(f"{server.url}/generate?model=gan", timeout=30).status_code == 200
    assert {counted() for _ in range(4)} == {(drawn + 6, deaths)}
    kill(server, min(workers(server)))
    wait_for(lambda: len(workers(server)) == WORKERS)
    assert counted() == (drawn + 6, deaths + 1), "what the dead one counted stays counted"


SLOW = """
import pathlib, socket, sys, time
from service.server.supervisor import READY, said
time.sleep(1)
control = socket.socket(fileno=int(sys.argv[1]))
control.send(said(READY))
while order := control.recv(100):
    with open({!r}, "a") as file:
        file.write(sys.argv[2] + order[:1].decode())
"""


def test_a_worker_that_was_starting_when_new_weights_came_is_told_once_it_has(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.touch()
    with run_server([sys.executable, "-c", FRONT, SLOW.format(str(told))]) as server:
        os.kill(dead := max(workers(server)), signal.SIGKILL)
        wait_for(lambda: len(set(workers(server)) - {dead}) == WORKERS)
        os.kill(server.process.pid, signal.SIGHUP)
        wait_for(lambda: sorted(told.read_text()[1::2]) == ["w", "w"], 10)
        assert sorted(told.read_text()[::2]) == ["0", "1"]
