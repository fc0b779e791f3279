"""A faulty device: a Runner that fails for the requests that ask for it.

The seed of a request, or the corner of an uploaded image, selects the fault. So it is known which requests may fail,
and all others must get their expected bytes.
"""

import os
import random
import signal
import time
from typing import Any

import torch
from numpy.typing import NDArray

from service.engine.request import Request, StartState
from service.engine.runner import Batch, Row, Runner

FAULTS = ("raises", "nan", "out of memory", "out of memory for many", "pauses", "stalls", "blocks", "dies")
"""Faults of a step on the device. `pauses` and `blocks` hold up the event loop before the first step."""
SEED_MODULUS = 1009
"""A seed selects fault i if its remainder is SEED_MODULUS - 1 - i. The small seeds of warm-up select none."""
MANY = 2
"""A batch with more rows than this runs `out of memory for many`."""
PAUSE_SECONDS = 0.5
"""Duration of `pauses`, which the watchdog allows."""
STALL_SECONDS = 60.0
"""Duration of `stalls` and `blocks`, which the watchdog ends."""


def fault(seed: int) -> str:
    """Return the fault that a seed selects, or an empty string."""
    number = SEED_MODULUS - 1 - seed % SEED_MODULUS
    return FAULTS[number] if number < len(FAULTS) else ""


def faulty_seed(name: str, source: random.Random) -> int:
    """Return a seed that selects the fault called `name`."""
    return source.randrange(2**40) * SEED_MODULUS + SEED_MODULUS - 1 - FAULTS.index(name)


def healthy_seed(source: random.Random) -> int:
    """Return a seed that selects no fault."""
    while fault(seed := source.randrange(2**50)):
        pass
    return seed


class Faulty(Runner):
    """A runner with the faults that requests select."""

    def labels(self, request: Request) -> NDArray[Any]:
        name = fault(request.samples[0].start.seed)
        if name == "pauses":
            time.sleep(PAUSE_SECONDS)
        elif name == "blocks":
            time.sleep(STALL_SECONDS)
        return super().labels(request)

    def advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        faults = {fault(row.sample.start.seed) for row in rows}
        if "raises" in faults:
            raise RuntimeError("the device failed")
        if "stalls" in faults:
            time.sleep(STALL_SECONDS)
        if "dies" in faults:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().advance(rows)

    def _advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        faults = {fault(row.sample.start.seed) for row in rows}
        if "out of memory" in faults or ("out of memory for many" in faults and len(rows) > MANY):
            raise torch.OutOfMemoryError("the device has no memory left")
        return super()._advance(rows)

    def _start_states(self, points: list[tuple[StartState, NDArray[Any]]]) -> Batch:
        if any(point.image is not None and marked(point.image) for point, _ in points):
            raise RuntimeError("the encoder failed")
        batch = super()._start_states(points)
        poisoned = [i for i, (point, _) in enumerate(points) if fault(point.seed) == "nan"]
        if poisoned:
            batch = Batch(batch.state.clone(), batch.label)
            batch.state[poisoned] = torch.nan
        return batch


def marked(image: torch.Tensor) -> bool:
    """Return whether the first pixel is white. The encoder fails for such an image."""
    return bool(image[0, 0, 0] == 1)
