"""Damage to the weights of a running service, and what the service says about it."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from chaos import accounting
from chaos.accounting import WORKERS
from harness.server import Server
from harness.weights import WEIGHTS
from models.store import MANIFEST, TENSORS

TIMEOUT = 60.0
"""Seconds after which something that should happen counts as never happening."""


class Damage:
    """Ways to damage the files of one model in `weights`.

    `new` has other weights of the models called `names`.
    """

    def __init__(self, weights: Path, new: Path, names: Sequence[str], source: random.Random) -> None:
        self.weights, self.new, self.names, self.source = weights, new, names, source
        self.actions: Mapping[str, Callable[[str], None]] = {
            "weights truncated": self.truncate_weights,
            "a bit of weights flipped": self.flip_bit,
            "weights swapped between models": self.swap_models,
            "new weights half copied": self.copy_half,
            "weights deleted": self.delete_weights,
            "a manifest truncated": self.truncate_manifest,
        }

    def truncate_weights(self, name: str) -> None:
        tensors = self.weights / name / TENSORS
        os.truncate(tensors, self.source.randrange(tensors.stat().st_size))

    def flip_bit(self, name: str) -> None:
        tensors = self.weights / name / TENSORS
        data = bytearray(tensors.read_bytes())
        data[self.source.randrange(len(data))] ^= 1 << self.source.randrange(8)
        tensors.write_bytes(data)

    def swap_models(self, name: str) -> None:
        other = self.source.choice([other for other in self.names if other != name])
        shutil.copyfile(WEIGHTS / other / TENSORS, self.weights / name / TENSORS)

    def copy_half(self, name: str) -> None:
        data = (self.new / name / TENSORS).read_bytes()
        (self.weights / name / TENSORS).write_bytes(data[: self.source.randrange(len(data))])
        shutil.copyfile(self.new / name / MANIFEST, self.weights / name / MANIFEST)

    def delete_weights(self, name: str) -> None:
        (self.weights / name / TENSORS).unlink()

    def truncate_manifest(self, name: str) -> None:
        manifest = self.weights / name / MANIFEST
        os.truncate(manifest, self.source.randrange(manifest.stat().st_size))


def happens(condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """Wait until the condition holds. Returns False if that takes longer than `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def reload(server: Server, timeout: float = TIMEOUT) -> bool:
    """Send SIGHUP and wait until all workers have reloaded, a starting one included. Returns whether they did."""

    def reloads() -> float:
        metrics = accounting.read_metrics(server.url)
        return sum(value for (name, _), value in metrics.items() if name == "weights_reloads_total")

    before = reloads()
    server.process.send_signal(signal.SIGHUP)
    return happens(lambda: reloads() >= before + WORKERS, timeout)


def each_worker(server: Server) -> Iterator[httpx.Client]:
    """Yield clients with a connection each. The supervisor spreads new connections over all workers."""
    with ExitStack() as stack:
        clients = [httpx.Client(base_url=server.url, timeout=TIMEOUT) for _ in range(2 * WORKERS)]
        yield from [stack.enter_context(client) for client in clients]


def broken_weights(server: Server) -> set[frozenset[str]]:
    """Return the names of broken weights, as every worker reports them."""
    return {frozenset(client.get("/readyz").json()["broken"]) for client in each_worker(server)}
