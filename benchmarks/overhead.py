"""The parts of a request that no GPU is needed for, measured: what the CPU does beside the nets."""

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
from benchmarks.serve import ours
from harness.load import build_request, merge, run_load
from harness.server import ROOT, children, run_service

UNDRAWN = (sys.executable, "-m", "benchmarks.peers.null_model")
CONNECTIONS = 2000
"""Each of one request, by which the front is measured."""
Costs = Mapping[str, tuple[float, float]]
"""Milliseconds of a step by model: a fixed part, and a row's."""


@dataclass(frozen=True)
class Parts:
    """CPU microseconds, and bytes."""

    worker: dict[str, float]
    """Of the worker, a request, by model: HTTP, validation, queue, turns, PNG, and telling of it."""
    front: float
    """Of the front, a connection; it never sees the requests."""
    traffic: int
    """Bytes of a request and its answer."""


def measured(costs: Costs, seats: int, seconds: float) -> Parts:
    """All of them, with one worker whose steps take what a GPU's are taken to, asleep."""
    os.environ["DEVICE"] = json.dumps(costs)
    with tempfile.TemporaryDirectory() as folder:
        for model in costs:
            (Path(folder) / model).symlink_to(ROOT / "weights" / model)
        with run_service(UNDRAWN, weights=folder, workers=1, max_batch_size=seats, device="cpu") as (url, front):
            (worker,) = children(front)
            spent = {model: _request(url, worker, model, 2 * seats, seconds) for model in costs}
            with spending(front) as used:
                for _ in range(CONNECTIONS):
                    exchange(url, build_request("/livez").replace(b"POST", b"GET"))
            question = ours("dcgan", 1, 1)
            return Parts(spent, used() / CONNECTIONS, len(question) + len(exchange(url, question)))


def _request(url: str, worker: int, model: str, clients: int, seconds: float) -> float:
    """CPU microseconds of the worker for each request that so many clients ask."""
    seeds = itertools.count()
    with spending(worker) as used:
        found = merge(run_load(url, [lambda: ours(model, next(seeds), MODELS[model])] * clients, seconds, warm=0))
    if found.failed:
        raise SystemExit(f"{found.failed} requests failed")
    return used() / next(seeds)


@contextmanager
def spending(pid: int) -> Iterator[Callable[[], float]]:
    """The CPU microseconds that a process spends in the block."""
    clock = (~pid << 3) | 2  # clock_getcpuclockid(3), which Python has not
    before = time.clock_gettime(clock)
    spent: list[float] = []
    yield lambda: spent[0]
    spent.append(1e6 * (time.clock_gettime(clock) - before))


def exchange(url: str, question: bytes) -> bytes:
    """The answer to a request over a connection of its own."""
    at, found = urlsplit(url), b""
    with socket.create_connection((at.hostname or "", at.port or 0), timeout=10) as connection:
        connection.sendall(question.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        while part := connection.recv(65536):
            found += part
    return found
