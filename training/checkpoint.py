"""Checkpoints: the full state of a run on disk, from which a resumed run equals an uninterrupted one to the bit."""

import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from models import store
from training.transfer import HostCopy

LATEST, BEST = "latest.pt", "best.pt"


class NotFinite(Exception):
    """A loss, a weight or an optimiser's state of a run is infinite or not a number; the message names it."""


def require_finite(state: dict[str, Any]) -> None:
    """Raise NotFinite if a tensor in a tree of dictionaries has a value that is not finite."""
    finite = {name: tensor.isfinite().all() for name, tensor in _tensors(state)}  # all at once: reading waits for a GPU
    for name, is_finite in finite.items():
        if not is_finite:
            raise NotFinite(f"{name} has values that are not finite")


def _tensors(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a tree of dictionaries, with their names."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path` atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    store.write_atomic(path, buffer.getvalue())


class Writer:
    """Saves checkpoints one after the other: at once, or on a thread, from a copy in host memory.

    A context manager, whose end waits for the last one. An error of the thread is raised by the next `save`, or at the
    end of the block.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if kind is None:
            self._wait()

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Save `state`, whose tensors may change when this returns."""
        if self._thread is None:
            save(path, state)
            return
        self._wait()  # so that there is one copy at a time
        copy = HostCopy(state)
        self._pending = self._thread.submit(lambda: save(path, copy.result()))

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def load(path: Path) -> dict[str, Any]:
    """Read a state that `save` wrote. Only tensors and plain containers are read; code in the file never runs."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's global generators for the CPU and for `device`, keyed by device type."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the global generators. `state` may come from another device: its state for `device` is then missing."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])
