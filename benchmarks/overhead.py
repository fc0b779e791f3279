"""The CPU time of the parts of a request that need no GPU, measured. `capacity_model` uses it."""

import itertools
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.engine import MODELS
from benchmarks.serve import json_request
from harness.load import build_request, merge, run_load
from harness.server import children, run_service
from harness.weights import WEIGHTS

NULL_MODEL = (sys.executable, "-m", "benchmarks.peers.null_model")
CONNECTIONS = 2000
"""Connections of one request each, from which the supervisor's time is measured."""
StepCosts = Mapping[str, tuple[float, float]]
"""Milliseconds of a step by model: a fixed part, and a part for each row."""


@dataclass(frozen=True)
class Overhead:
    """CPU microseconds and bytes."""

    worker: dict[str, float]
    """Of the worker for a request, by model: HTTP, validation, queue, engine steps, PNG and telemetry."""
    supervisor: float
    """Of the supervisor for a connection. It never reads requests."""
    traffic: int
    """Bytes of a request and its response."""


def measure(costs: StepCosts, batch_size: int, seconds: float) -> Overhead:
    """Measure a service with one worker whose steps sleep for the time that `costs` give."""
    os.environ["STEP_COSTS"] = json.dumps(costs)
    with tempfile.TemporaryDirectory() as folder:
        for model in costs:
            (Path(folder) / model).symlink_to(WEIGHTS / model)
        settings = {"weights": folder, "workers": 1, "max_batch_size": batch_size, "device": "cpu"}
        with run_service(NULL_MODEL, **settings) as (url, supervisor):
            (worker,) = children(supervisor)
            spent = {model: _request_microseconds(url, worker, model, 2 * batch_size, seconds) for model in costs}
            with cpu_microseconds(supervisor) as used:
                for _ in range(CONNECTIONS):
                    exchange(url, build_request("/livez").replace(b"POST", b"GET"))
            request = json_request("dcgan", 1, 1)
            return Overhead(spent, used() / CONNECTIONS, len(request) + len(exchange(url, request)))


def _request_microseconds(url: str, worker: int, model: str, clients: int, seconds: float) -> float:
    """Return the worker's CPU microseconds per request from `clients` concurrent clients."""
    seeds = itertools.count()
    with cpu_microseconds(worker) as used:
        requests = [lambda: json_request(model, next(seeds), MODELS[model])] * clients
        result = merge(run_load(url, requests, seconds, warm=0))
    if result.failed:
        raise SystemExit(f"{result.failed} requests failed")
    return used() / next(seeds)


@contextmanager
def cpu_microseconds(pid: int) -> Iterator[Callable[[], float]]:
    """Measure the CPU time of a process in the block. Yields a function that returns it after the block."""
    clock = (~pid << 3) | 2  # clock_getcpuclockid(3), which Python lacks
    before = time.clock_gettime(clock)
    spent: list[float] = []
    yield lambda: spent[0]
    spent.append(1e6 * (time.clock_gettime(clock) - before))


def exchange(url: str, request: bytes) -> bytes:
    """Send a request over a new connection and return the response."""
    address, response = urlsplit(url), b""
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        while part := connection.recv(65536):
            response += part
    return response
