"""Faults outside: signals, damaged weights, a wall clock that jumps, and exhausted file descriptors.

Clients send requests all the time. If a process ends, they retry until they have a response. Otherwise every first
attempt must succeed.
"""

import os
import random
import resource
import shutil
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from chaos import accounting
from chaos.accounting import WORKERS
from chaos.damage import TIMEOUT, Damage, broken_weights, each_worker, happens, reload
from chaos.scenario import Line, Setting
from harness.clients import ClientAction, LoadReport, background_clients
from harness.expected import Expected, ExpectedRequest, expected_responses, seeded_requests
from harness.server import SERVICE, Server, environment, free_port, run_server
from harness.weights import WEIGHTS, copy_weights, perturb_weights

CLIENTS = 6
QUICK_PAUSE = 0.1
"""Seconds between the requests of a client in the quick form, which leaves the processors to the faults."""
MODELS = {"cgan": "digit=3&n=3", "kde": "n=2", "vae": "n=20&format=zip"}
"""The models that clients request, with their parameters."""
UNUSED = "pca"
"""A model that clients do not request."""


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copy_weights(setting.root, *MODELS, UNUSED)

    def choose(_: object) -> list[ExpectedRequest]:
        seeds = [source.randrange(2**53) for _ in range(12)]
        return [request for name, query in MODELS.items() for request in seeded_requests(name, seeds, query)]

    expected = expected_responses(choose, weights=weights)
    settings = {"weights": weights, "workers": WORKERS, "device": "cpu"}
    yield from signals(setting, expected, settings)
    with run_server(SERVICE, environment(port=0, **settings)) as server:
        yield from damaged_weights(setting, expected, server, weights)
        yield from exhausted_descriptors(setting, expected, server)
        yield accounting.requests_accounted(server.url)
    yield from clock_jumps(setting, expected, settings)


def client_actions(setting: Setting, report: LoadReport) -> list[ClientAction]:
    """Return the clients that send requests all the time."""
    return [report.client(QUICK_PAUSE if setting.quick else 0.0)] * CLIENTS


def signals(setting: Setting, expected: Expected, settings: dict[str, object]) -> Iterator[Line]:
    """Kill and terminate workers and whole services while clients retry."""
    source, report, port = random.Random(setting.seed), LoadReport(expected, retry_seconds=TIMEOUT), free_port()
    periods: dict[str, list[tuple[float, float]]] = {}
    """Start and end of the time that was affected, by action."""
    errors = Counter[str]()
    last_restart: tuple[str, float] | None = None
    with ExitStack() as clients:
        for number in (*([signal.SIGKILL] if setting.quick else [signal.SIGKILL, signal.SIGTERM] * 5), None):
            with run_server(SERVICE, environment(port=port, **settings)) as server:
                if last_restart is None:
                    actions = client_actions(setting, report)
                    clients.enter_context(background_clients(server.url, actions, setting.seed))
                time.sleep(1.0)
                if last_restart is not None:
                    periods.setdefault(last_restart[0], []).append((last_restart[1], time.monotonic()))
                if number is None:
                    clients.close()
                    break
                for worker_signal in (signal.SIGKILL, signal.SIGTERM):
                    action, started_at, before = f"{worker_signal.name} of a worker", time.monotonic(), server.workers
                    os.kill(source.choice(before), worker_signal)
                    errors[action] += not happens(lambda: _replaced(server, before))  # noqa: B023  within this round
                    time.sleep(0.5)
                    periods.setdefault(action, []).append((started_at, time.monotonic()))
                last_restart = f"{number.name} of the service, and a restart", time.monotonic()
                server.process.send_signal(number)
                errors[last_restart[0]] += server.process.wait(TIMEOUT) != (0 if number == signal.SIGTERM else -number)
    for action, times in periods.items():
        gaps = [report.longest_gap(*period) for period in times]
        figures = f"no response for {statistics.median(gaps):.2f} s, at most {max(gaps):.2f} s"
        yield Line(action, len(gaps), errors[action], figures)
    yield Line("requests with retries", report.total, report.lost, f"{report.retries:,} retries{report.errors()}")


def _replaced(server: Server, before: Sequence[int]) -> bool:
    """Return whether a worker was replaced."""
    now = server.workers
    return len(now) == WORKERS and set(now) != set(before)


def damaged_weights(setting: Setting, expected: Expected, server: Server, weights: Path) -> Iterator[Line]:
    """Damage weights while they are served, reload them with SIGHUP, and restore them."""
    source = random.Random(setting.seed)
    new = copy_weights(setting.root / "new", *MODELS)
    for name in MODELS:
        perturb_weights(new / name, setting.seed)
    damage = Damage(weights, new, [*MODELS], source)
    report = LoadReport(expected)
    counts, errors = Counter[str](), Counter[str]()
    with background_clients(server.url, client_actions(setting, report), setting.seed):
        for _ in range(1 if setting.quick else 6):
            for action, apply in damage.actions.items():
                name = source.choice([*MODELS])
                apply(name)
                counts[action] += 1
                errors[action] += not (reload(server) and broken_weights(server) == {frozenset([name])})
                shutil.rmtree(weights / name)
                shutil.copytree(WEIGHTS / name, weights / name)
                errors[action] += not (reload(server) and broken_weights(server) == {frozenset()})
        shutil.rmtree(weights / UNUSED)
        unloaded = reload(server) and _statuses(server) == {404}
        shutil.copytree(WEIGHTS / UNUSED, weights / UNUSED)
        restored = reload(server) and _statuses(server) == {200}
    for action, count in counts.items():
        yield Line(action, count, errors[action], "/readyz names the model")
    yield Line("a directory of weights deleted", 1, int(not (unloaded and restored)), "404 until it is restored")
    figures = f"the last good weights are served{report.errors()}"
    yield Line("requests beside damaged weights", report.total, report.lost, figures)


def _statuses(server: Server) -> set[int]:
    """Return the statuses with which the workers answer requests to UNUSED."""
    return {client.post(f"/generate?model={UNUSED}&seed=1").status_code for client in each_worker(server)}


def exhausted_descriptors(setting: Setting, expected: Expected, server: Server) -> Iterator[Line]:
    """Use up the file descriptors of all processes with idle connections."""
    report = LoadReport(expected)
    rounds, refused, recovered = (1 if setting.quick else 5), 0, list[float]()
    with background_clients(server.url, client_actions(setting, report), setting.seed):
        happens(lambda: report.correct > CLIENTS)  # all clients are connected
        for _ in range(rounds):
            limits = {pid: _limit_descriptors(pid) for pid in (server.process.pid, *server.workers)}
            address = httpx.URL(server.url)
            idle = [socket.create_connection((address.host, address.port)) for _ in range(300)]
            time.sleep(1.0 if setting.quick else 5.0)
            refused += not _responds(server.url)
            for connection in idle:
                connection.close()
            closed_at = time.monotonic()
            if happens(lambda: _responds(server.url)):
                recovered.append(time.monotonic() - closed_at)
            for pid, limit in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    lost = rounds - len(recovered) + rounds - refused
    figures = f"new clients are served {max(recovered, default=TIMEOUT):.2f} s after the idle connections are closed"
    yield Line("descriptors exhausted by 300 idle connections", rounds, lost, figures)
    yield Line("requests over older connections", report.total, report.lost, report.errors().removeprefix("; "))


def _limit_descriptors(pid: int) -> tuple[int, int]:
    """Leave a process 16 more descriptors than it uses. Returns its former limits."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 16, hard))
    return soft, hard


def _responds(url: str) -> bool:
    """Return whether the service responds over a new connection."""
    try:
        return httpx.get(f"{url}/livez", timeout=1.0).is_success
    except httpx.TransportError:
        return False


def clock_jumps(setting: Setting, expected: Expected, settings: dict[str, object]) -> Iterator[Line]:
    """Set the wall clock forwards and backwards with libfaketime. The monotonic clock cannot be set."""
    action = "wall clock set"
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        yield Line(action, 0, 0, skipped="libfaketime is not installed")
        return
    clock = setting.root / "clock"
    clock.write_text("+0s\n")
    faketime = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    offsets = (3600, -7200, 315_360_000, -31_536_000, 86_400, 0) * (1 if setting.quick else 3)
    report, unnoticed = LoadReport(expected), 0
    with run_server(SERVICE, environment(port=0, **settings) | faketime) as server:
        with background_clients(server.url, client_actions(setting, report), setting.seed):
            for offset in offsets:
                clock.write_text(f"{offset:+d}s\n")
                unnoticed += not happens(lambda: abs(_clock_offset(server.url) - offset) < 60)  # noqa: B023
                time.sleep(0.5 if setting.quick else 2.0)
        yield Line(action, len(offsets), unnoticed, "by hours to ten years, forwards and backwards")
        figures = report.errors().removeprefix("; ")
        yield Line("requests while the clock is set", report.total, report.lost, figures)
        yield accounting.requests_accounted(server.url)


def _clock_offset(url: str) -> float:
    """Return how many seconds the service's clock is ahead of ours, by the Date header."""
    date = parsedate_to_datetime(httpx.get(f"{url}/livez", timeout=30).headers["date"])
    return (date - datetime.now(UTC)).total_seconds()
