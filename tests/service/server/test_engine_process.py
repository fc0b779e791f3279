"""HTTP processes beside an engine process: one engine for all of them, and no lost request when it dies."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from harness.scraping import metric_value, parse_metrics
from harness.server import SERVICE, Server, environment, run_server
from service.server import serve
from service.settings import Settings
from tests.service.conftest import problem
from tests.service.engine.test_reload import replace_weights
from tests.serving import wait_for, wait_for_accepted

MODELS = ("ddpm", "gan")


@pytest.fixture(scope="module")
def root(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that load fast."""
    root = tmp_path_factory.mktemp("weights")
    for name in MODELS:
        shutil.copytree(weights / name, root / name)
    return root


def settings_of(root: Path, **settings: object) -> dict[str, str]:
    """The environment of a service with two HTTP processes."""
    defaults = {"unconditional_model": "gan", "conditional_model": "gan"}
    return environment(weights=root, port=0, device="cpu", http_processes=2, max_batch_size=8, **defaults, **settings)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with run_server(SERVICE, settings_of(root)) as server:
        yield server


def processes(server: Server, module: str) -> list[int]:
    """The ids of the service's processes that run a module."""
    return [pid for pid in server.workers if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def engine_of(server: Server) -> int:
    """The engine process."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = processes(server, "service.server.engine_process")
        return bool(found)

    wait_for(is_there)
    return found[0]


def metric(server: Server, name: str) -> float:
    """A metric of all processes."""
    return metric_value(parse_metrics(httpx.get(f"{server.url}/metrics", timeout=60).text), name)


def test_a_dead_engine_loses_no_request_and_streams_go_on(server: Server) -> None:
    """The first test of this module: it begins with the first engine."""
    urls = [f"{server.url}/generate?model=ddpm&steps=150&n=2&seed={seed}" for seed in (1, 2)]
    stream = f"{server.url}/generate?model=ddpm&steps=40&n=20&seed=3&format=zip"
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(lambda url: httpx.get(url, timeout=60), urls))
        assert [response.headers["x-batch"] for response in first] == ["4", "4"], "each HTTP process has one of them"
        expected = [response.content for response in (*first, httpx.get(stream, timeout=60))]
        begun = threading.Event()

        def read_stream() -> bytes:
            with httpx.stream("GET", stream, timeout=60) as response:
                parts = []
                for part in response.iter_raw():
                    parts.append(part)
                    begun.set()
                return b"".join(parts)

        streamed = pool.submit(read_stream)
        begun.wait(60)
        long = [pool.submit(httpx.get, url, timeout=60) for url in urls]
        wait_for(lambda: metric(server, "accepted_total") >= 6)
        os.kill(engine_of(server), signal.SIGKILL)
        responses = [future.result() for future in long]
        assert [response.content for response in responses] == expected[:2]
        assert streamed.result() == expected[2]
    assert metric(server, "engine_deaths_total") == 1
    assert metric(server, "replayed_total") == 3
    assert metric(server, "worker_deaths_total") == 0
    assert metric(server, "rows_in_flight") == 0
    exited = "engine process 0 exited with status -9 and is restarted"
    wait_for(lambda: sum(exited in line for line in server.lines) == 1)


@pytest.mark.slow
def test_an_http_process_that_dies_loses_no_request(server: Server) -> None:
    url = f"{server.url}/generate?model=ddpm&steps=400&n=2&seed=1"
    expected = httpx.get(url, timeout=60).content
    with ThreadPoolExecutor(4) as pool:
        responses = [pool.submit(httpx.get, url, timeout=60) for _ in range(4)]
        time.sleep(0.3)
        os.kill(processes(server, "service.server.worker")[0], signal.SIGKILL)
        assert [response.result().content for response in responses] == [expected] * 4
    wait_for(lambda: len(processes(server, "service.server.worker")) == 2)
    wait_for(lambda: metric(server, "rows_in_flight") == 0)
    for _ in range(6):  # the successor has the engine too
        assert httpx.get(f"{server.url}/generate?model=gan", timeout=60).status_code == 200


@pytest.mark.slow
def test_a_reload_replaces_weights_in_all_processes(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "weights")
    with run_server(SERVICE, settings_of(tmp_path / "weights")) as server:
        old = httpx.get(f"{server.url}/generate?model=gan&seed=1", timeout=60)
        digest = replace_weights(tmp_path / "weights", "gan", 1)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: sum("reloaded weights: new gan@" in line for line in server.lines) == 2)
        for _ in range(4):
            new = httpx.get(f"{server.url}/generate?model=gan&seed=1", timeout=60)
            assert new.headers["x-model-digest"] == digest
        again = httpx.get(f"{server.url}{old.headers['content-location']}", timeout=60)
        assert again.content == old.content


@pytest.mark.slow
def test_a_shutdown_finishes_accepted_requests_and_refuses_new_ones(root: Path) -> None:
    with (
        run_server(SERVICE, settings_of(root)) as server,
        httpx.Client(base_url=server.url, timeout=60) as kept,
        ThreadPoolExecutor(1) as pool,
    ):
        assert kept.post("/generate?model=gan").status_code == 200
        accepted = pool.submit(httpx.post, f"{server.url}/generate?model=ddpm&steps=300", timeout=60)
        wait_for_accepted(server, 2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        problem(kept.post("/generate?model=gan"), 503, "unavailable")
        assert accepted.result().status_code == 200
        assert server.process.wait(30) == 0, "".join(server.lines)
        assert not any("killing" in line for line in server.lines)


@pytest.mark.slow
def test_all_processes_exit_when_the_supervisor_dies(root: Path) -> None:
    with run_server(SERVICE, settings_of(root)) as server:
        pids = server.workers
        assert len(pids) == 3
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


FAULTY = """
import os, signal, sys, time

if not sys.argv[1:]:
    from service.server import serve
    from service.settings import read_settings
    from service.telemetry import log

    settings = read_settings()
    log.configure(settings)
    sys.exit(serve.serve(settings, engine_command=sys.orig_argv))

from service.engine.runner import Runner
from service.server import engine_process


class Faulty(Runner):
    def labels(self, request):
        if request.samples[0].start.seed == 888:
            time.sleep(60)
        return super().labels(request)

    def advance(self, rows):
        seeds = {row.sample.start.seed for row in rows}
        if 666 in seeds and any(row.step == 2 for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        if 777 in seeds:
            time.sleep(60)
        return super().advance(rows)


engine_process.main(*sys.argv[1:], runner=Faulty)
"""
"""The service with an engine that dies in the third step of seed 666, does not end the first step of seed 777, and
blocks the event loop before that of seed 888."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "deaths"),
    [(666, "status -9"), (777, "status 1"), (888, "status 1")],
    ids=["dies", "stalls", "blocks the event loop"],
)
def test_a_request_that_ends_two_engines_fails_alone(root: Path, seed: int, deaths: str) -> None:
    settings = settings_of(root, watchdog_timeout=2)
    with run_server([sys.executable, "-c", FAULTY], settings) as server, ThreadPoolExecutor(8) as pool:

        def generate(seed: int) -> httpx.Response:
            return httpx.get(f"{server.url}/generate?model=ddpm&steps=100&seed={seed}", timeout=120)

        expected = [response.content for response in pool.map(generate, range(6))]
        others = [pool.submit(generate, seed) for seed in range(6)]
        wait_for_accepted(server, 12)
        poison = pool.submit(generate, seed)
        detail = problem(poison.result(), 503, "unavailable")
        assert detail == "two workers crashed while running this request; it is not retried"
        assert [response.result().content for response in others] == expected
        exited = f"engine process 0 exited with {deaths}"
        wait_for(lambda: sum(exited in line for line in server.lines) == 2)


@pytest.mark.slow
def test_the_queue_is_bounded_over_all_processes(root: Path) -> None:
    with (
        run_server(SERVICE, settings_of(root, queue_images=64, max_images=60)) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        long = f"{server.url}/generate?model=ddpm&steps=100&n=60&format=npz&seed=1"
        accepted = pool.submit(httpx.get, long, timeout=120)
        wait_for_accepted(server)
        statuses = [httpx.get(f"{server.url}/generate?model=gan&n=8&seed=1", timeout=60).status_code for _ in range(6)]
        assert set(statuses) == {429}, "either process refuses"
        assert httpx.get(f"{server.url}/generate?model=gan&n=4&seed=1", timeout=60).status_code == 200
        assert accepted.result().status_code == 200


# -- starting engine processes -----------------------------------------------------------------------------------------

SUPERVISOR = """
import logging, socket, sys
from pathlib import Path
from service.server import supervisor
from service.server.messages import CONNECTION

logging.basicConfig(format="%(message)s", level=logging.INFO)
supervisor.RESTART_DELAY = 0.1
listener = socket.create_server(("127.0.0.1", 0))
listener.setblocking(False)
commands = [(sys.executable, "-c", sys.argv[1], kind) for kind in ("worker", "engine")]
running = supervisor.Supervisor(
    {CONNECTION: listener}, 2, Path("."), drain_timeout=5, command=commands[0], engines=2, engine_command=commands[1]
)
status = running.run()
running.stop()
sys.exit(status)
"""
"""A supervisor of two workers and two engine processes that run a script."""
IDLE = """
import socket, sys
from pathlib import Path
from service.server.messages import READY, pack

root = Path({!r})
kind, control, index, *_ = sys.argv[1:]
if kind == "engine" and (root / "broken").exists():
    sys.exit(3)
control = socket.socket(fileno=int(control))
control.send(pack(READY))
while True:
    message, descriptors, _, _ = socket.recv_fds(control, 100, 2)
    if message[:1] in (b"", b"d"):
        break
    with (root / "messages").open("a") as file:
        file.write(f"{{kind}} {{index}} {{message[:1].decode()}} {{message[8]}} {{len(descriptors)}}\\n")
"""
"""A process that notes its messages, and as an engine cannot start while a file exists."""


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "messages").touch()
    command = [sys.executable, "-c", SUPERVISOR, IDLE.format(str(tmp_path))]
    with run_server(command, loaded=False) as server:
        yield server


def kill_engine(server: Server, index: int) -> None:
    """Kill an engine process."""
    for pid in server.workers:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if arguments[3:4] == [b"engine"] and arguments[5] == b"%d" % index:
            os.kill(pid, signal.SIGKILL)


def test_every_worker_is_connected_with_every_engine_and_its_successor(idle: Server, tmp_path: Path) -> None:
    messages = tmp_path / "messages"

    def connected(*engines: int) -> bool:
        expected = {f"worker {worker} e {engine} 2" for worker in (0, 1) for engine in engines}
        expected |= {f"engine {engine} h {worker} 1" for worker in (0, 1) for engine in engines}
        return expected == set(messages.read_text().splitlines())

    wait_for(lambda: connected(0, 1))
    (tmp_path / "broken").touch()
    kill_engine(idle, 1)
    failed = "engine process 1 failed to start; it exited with status 3"
    wait_for(lambda: sum(failed in line for line in idle.lines) > 1)
    assert idle.process.poll() is None, "the other engine serves"
    messages.write_text("")
    (tmp_path / "broken").unlink()
    wait_for(lambda: connected(1))


def test_the_service_ends_when_no_engine_can_start(idle: Server, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    for index in (0, 1):
        kill_engine(idle, index)
    assert idle.process.wait(60) == 1


# -- settings ----------------------------------------------------------------------------------------------------------


def test_both_layouts_at_once_are_an_error() -> None:
    with pytest.raises(ValueError, match="DRAWBRIDGE_WORKERS and DRAWBRIDGE_HTTP_PROCESSES contradict each other"):
        Settings(workers=2, http_processes=2)
    assert Settings(workers=2, http_processes=0).http_processes == 0


def test_a_system_without_a_supervisor_has_no_http_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    models = {"unconditional_model": "gan", "conditional_model": "gan"}
    with pytest.raises(ValueError, match="DRAWBRIDGE_HTTP_PROCESSES is 2, but darwin has no connection hand-over"):
        serve.serve(Settings(weights=root, device="cpu", http_processes=2, **models))


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, (8, 0)),
        ({"http_processes": 3}, 0, (3, 1)),
        ({"workers": 3}, 0, (3, 0)),
        ({}, 1, (8, 1)),
        ({}, 2, (8, 2)),
        ({"http_processes": 0}, 2, (2, 0)),
        ({"http_processes": 4}, 2, (4, 2)),
        ({"workers": 4}, 2, (4, 0)),
    ],
)
def test_a_gpu_has_http_processes_beside_its_engine(
    settings: dict[str, int], gpus: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "available_cores", lambda: 16)
    monkeypatch.setattr(serve, "gpu_count", lambda _: gpus)
    assert serve.process_counts(Settings(**settings)) == expected
