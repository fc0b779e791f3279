"""A device that misbehaves: a Runner that fails on rows whose request asks for it.

The seed of a request, or the corner of a picture that it uploads, decides what goes wrong, so that it is known who is
guilty, and that nobody else may suffer.
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

FAULTS = (
    "raises",
    "is not a number",
    "finds no memory",
    "finds no memory for many",
    "pauses",
    "stalls",
    "blocks",
    "dies",
)
"""What a guilty request's step on the device does; `pauses` and `blocks` hold up the event loop before there is one."""
EVERY = 1009
"""A seed is guilty of fault i where it leaves EVERY - 1 - i; the small seeds of probes at warm-up are not."""
FEW = 2
"""Rows for which there is memory where there is none for many."""
PAUSE, STALL = 0.5, 60.0
"""Seconds that the event loop, or a step, is held up: bearable, and not."""


def fault(seed: int) -> str:
    """What a request of this seed does; empty of an innocent one."""
    number = EVERY - 1 - seed % EVERY
    return FAULTS[number] if number < len(FAULTS) else ""


def faulty_seed(what: str, source: random.Random) -> int:
    """A seed that does it."""
    return source.randrange(2**40) * EVERY + EVERY - 1 - FAULTS.index(what)


def healthy_seed(source: random.Random) -> int:
    """A seed that does nothing."""
    while fault(seed := source.randrange(2**50)):
        pass
    return seed


class Faulty(Runner):
    """A runner that does what guilty requests ask for."""

    def labels(self, request: Request) -> NDArray[Any]:
        what = fault(request.samples[0].start.seed)
        if what == "pauses":
            time.sleep(PAUSE)
        elif what == "blocks":
            time.sleep(STALL)
        return super().labels(request)

    def advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        asked = {fault(row.sample.start.seed) for row in rows}
        if "raises" in asked:
            raise RuntimeError("the device failed")
        if "stalls" in asked:
            time.sleep(STALL)
        if "dies" in asked:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().advance(rows)

    def _advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        asked = {fault(row.sample.start.seed) for row in rows}
        if "finds no memory" in asked or ("finds no memory for many" in asked and len(rows) > FEW):
            raise torch.OutOfMemoryError("the device has no memory left")
        return super()._advance(rows)

    def _start_states(self, points: list[tuple[StartState, NDArray[Any]]]) -> Batch:
        if any(point.image is not None and marked(point.image) for point, _ in points):
            raise RuntimeError("the encoder failed")
        batch = super()._start_states(points)
        poisoned = [i for i, (point, _) in enumerate(points) if fault(point.seed) == "is not a number"]
        if poisoned:
            batch = Batch(batch.state.clone(), batch.label)
            batch.state[poisoned] = torch.nan
        return batch


def marked(image: torch.Tensor) -> bool:
    """Whether the picture's first pixel is white: its encoder fails."""
    return bool(image[0, 0, 0] == 1)
