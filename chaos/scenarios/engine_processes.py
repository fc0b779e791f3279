"""Engine processes: HTTP processes and the engine process beside them are killed, stopped, or exit in a step.

Clients send requests all the time. Whichever process ends, a request gets its expected bytes at the first attempt. So
does a stream if the engine process ends. If an HTTP process ends, the streams that it has begun are cut off, and their
clients retry. A request that kills every engine process that runs it gets 503, and no other request does.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from chaos import accounting, worker
from chaos.damage import happens
from chaos.scenario import Line, Setting
from chaos.scenarios.faults_inside import (
    FATAL,
    HEALTHY,
    MODELS,
    WATCHDOG_SECONDS,
    healthy_requests,
    recoverable,
    send_faulty,
)
from harness.clients import ClientAction, LoadReport, background_clients, http_client
from harness.expected import TIMEOUT, Expected, expected_responses
from harness.server import Server, environment, run_server
from harness.weights import copy_weights

HTTP_PROCESSES = 2
LONG = (("ddpm", "steps=20&n=2"), ("ddpm", "steps=8&n=12&format=zip"), ("ddpm", "steps=8&n=4&format=events"))
"""Models and parameters of requests that take many steps."""
STREAMS = ("format=zip", "format=events")
CLIENTS, STREAM_CLIENTS = 8, 4
STOP_SECONDS = WATCHDOG_SECONDS + 1
Inject = Callable[[Server], int]
"""Injects a fault. Returns how much went wrong."""


def run(setting: Setting) -> Iterator[Line]:
    source = random.Random(setting.seed)
    weights = copy_weights(setting.root, *MODELS)
    expected = expected_responses(lambda _: healthy_requests(source, HEALTHY + LONG), weights=weights)
    settings = environment(
        port=0, weights=weights, http_processes=HTTP_PROCESSES, device="cpu", watchdog_timeout=WATCHDOG_SECONDS
    )
    for engines in (1,) if setting.quick else (1, 2):
        with run_server(worker.COMMAND, settings | {worker.ENGINES: str(engines)}) as server:
            for line in faults(setting, server, HTTP_PROCESSES + engines, expected):
                yield line if engines == 1 else replace(line, action=f"{engines} engine processes: {line.action}")


def faults(setting: Setting, server: Server, processes: int, expected: Expected) -> Iterator[Line]:
    """Inject all faults into a service with so many processes beside its supervisor."""
    yield from recoverable(server, expected, 4.0 if setting.quick else 60.0, setting.seed)
    yield accounting.requests_accounted(server.url)
    rounds, source = (1 if setting.quick else 6), random.Random(setting.seed)
    whole = LoadReport({request: body for request, body in expected.items() if not request.url.endswith(STREAMS)})
    streams = LoadReport({request: body for request, body in expected.items() if request.url.endswith(STREAMS)})
    cut = LoadReport(streams.expected, retry_seconds=TIMEOUT)
    """Streams beside faults that may cut them off."""

    def inject_all(actions: Mapping[str, Inject], stream_report: LoadReport) -> Iterator[Line]:
        clients = [*[whole.client()] * CLIENTS, *[stream_report.client()] * STREAM_CLIENTS]
        for action, inject in actions.items():
            yield _ended(action, inject, server, processes, clients, whole, rounds)

    yield from inject_all(engine_faults(source), streams)
    yield Line("streams at their first attempt", streams.total, streams.lost, f"{streams.p99()}{streams.errors()}")
    yield accounting.engines_replaced(server, processes, rounds * len(FATAL))
    yield from inject_all(http_faults(source), cut)
    yield Line("streams with retries", cut.total, cut.lost, f"{cut.retries} retries{cut.errors()}")
    yield Line("requests at their first attempt", whole.total, whole.lost, f"{whole.p99()}{whole.errors()}")
    yield accounting.workers_replaced(server, processes)


def _ended(
    action: str,
    inject: Inject,
    server: Server,
    processes: int,
    clients: Sequence[ClientAction],
    report: LoadReport,
    rounds: int,
) -> Line:
    """Inject a fault beside clients, of which `report` knows. Each round ends when all processes and requests are well.

    The line has the times without a response, and until all processes have their models again.
    """
    errors, gaps, durations = 0, list[float](), list[float]()
    for seed in range(rounds):
        with background_clients(server.url, clients, seed):
            time.sleep(1.0)
            started_at = time.monotonic()
            errors += inject(server) + (not happens(partial(_recovered, server, processes), TIMEOUT))
            durations.append(time.monotonic() - started_at)
            gaps.append(report.longest_gap(started_at, time.monotonic()))
    figures = f"no response for {statistics.median(gaps):.2f} s, at most {max(gaps):.2f} s"
    return Line(action, rounds, errors, f"{figures}; all processes are ready again after {max(durations):.2f} s")


def engine_faults(source: random.Random) -> Mapping[str, Inject]:
    """Return the faults that end engine processes and no HTTP process, by what they do."""
    return {
        "SIGKILL of an engine process": lambda server: _kill(server, [source.choice(_pids(server, engines=True))]),
        f"SIGSTOP of an engine process for {STOP_SECONDS} s": partial(_stop_engine, source),
        **{f"{fault}, in every engine process": partial(_send_fatal, name, source) for name, fault in FATAL.items()},
    }


def http_faults(source: random.Random) -> Mapping[str, Inject]:
    """Return the faults that end HTTP processes, by what they do."""
    return {
        "SIGKILL of an HTTP process": lambda server: _kill(server, [source.choice(_pids(server, engines=False))]),
        "SIGKILL of all HTTP processes": lambda server: _kill(server, _pids(server, engines=False)),
        "SIGKILL of all processes but the supervisor": lambda server: _kill(server, server.workers),
    }


def _pids(server: Server, *, engines: bool) -> list[int]:
    """Return the ids of the engine processes, or of the HTTP processes."""
    return [pid for pid in server.workers if (worker.ENGINE in _arguments(pid)) == engines]


def _arguments(pid: int) -> list[str]:
    """Return a process's arguments. One that has ended has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def _recovered(server: Server, processes: int) -> bool:
    """Return whether so many processes run, and each has logged that its models are in memory."""
    loaded = {json.loads(line)["pid"] for line in server.lines if "models in memory" in line}
    running = [pid for pid in server.workers if _arguments(pid)]
    return len(running) == processes and loaded.issuperset(running)


def _kill(server: Server, pids: list[int]) -> int:
    """Kill processes and wait until the supervisor has noticed."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return int(not happens(lambda: not {*pids} & {*server.workers}))


def _stop_engine(source: random.Random, server: Server) -> int:
    """Stop an engine process for longer than its watchdog allows. It may end when it goes on."""
    pid = source.choice(_pids(server, engines=True))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOP_SECONDS)
    os.kill(pid, signal.SIGCONT)
    happens(lambda: pid not in server.workers, WATCHDOG_SECONDS)
    return 0


def _send_fatal(name: str, source: random.Random, server: Server) -> int:
    """Send a request that ends every engine process that runs it."""

    async def send() -> str:
        async with http_client(server.url) as client:
            return await send_faulty(client, name, source)

    return int(asyncio.run(send()) != "503")
