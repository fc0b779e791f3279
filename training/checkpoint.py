"""Checkpoints: the full state of a run on disk, from which a resumed run equals an uninterrupted one to the bit."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import store

LATEST, BEST = "latest.pt", "best.pt"


class NotFinite(Exception):
    """A loss, a weight or an optimiser's state of a run is infinite or not a number; the message names it."""


def require_finite(state: dict[str, Any], prefix: str = "") -> None:
    """Raise NotFinite if a tensor in a tree of dictionaries has a value that is not finite."""
    for key, value in state.items():
        if isinstance(value, dict):
            require_finite(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and not value.isfinite().all():
            raise NotFinite(f"{prefix}{key} has values that are not finite")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path` atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    store.write_atomic(path, buffer.getvalue())


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
