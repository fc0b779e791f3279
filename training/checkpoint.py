"""The state of a run on disk, so that the same command goes on where it stood, to the bit."""

import io
from pathlib import Path
from typing import Any

import torch

from models import store

LATEST, BEST = "latest.pt", "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) in one rename."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    store.write_atomic(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Code in the file is never run: only tensors and plain containers are read."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's global generators for the CPU and for `device`."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the global generators where `random_state` found them, which may have been with another device."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
