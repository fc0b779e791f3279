"""A deterministic test family, requests to it, and helpers to run an engine."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import noise
from models.base import Family, Range, Rows
from service.engine.engine import Engine
from service.engine.request import Request, Sample, StartState

MAX_BATCH_SIZE = 8


@dataclass(frozen=True)
class NoConfig:
    pass


class Walk(Family):
    """A random walk with the requested number of steps. Label 9 raises an error, label 8 gives infinite states."""

    Config = NoConfig
    conditional = True
    steps = Range(1, 100, 5)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.zeros_like(seed), (28, 28))

    def step(self, rows: Rows) -> Tensor:
        label = rows.label.argmax(1)
        if bool((rows.label[:, 9] == 1).any()):
            raise RuntimeError("label 9 is not allowed")
        drift = rows.state * 0.8 + 0.1 * label.view(-1, 1, 1)
        state = drift + 0.3 * noise.normal(rows.seed, rows.index, rows.step, (28, 28))
        return torch.where((rows.label[:, 8] == 1).view(-1, 1, 1), torch.inf, state)

    def decode(self, state: Tensor) -> Tensor:
        return torch.where(state.isinf(), state, (state / 4).clamp(-1, 1))[:, None]


class Clock:
    """A clock that advances by one second per call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def request(
    n: int = 1, *, seed: int = 0, first: int = 0, steps: int = 5, label: int = 1, model: str = "walk"
) -> Request:
    """A request for n images of one label."""
    return Request(model, tuple(Sample(StartState(seed, first + i, label)) for i in range(n)), steps)


def run(engine: Engine) -> int:
    """Run steps until no row waits. Returns the number of steps."""
    steps = 0
    while engine.step():
        steps += 1
    return steps


def images(ticket: Any) -> Any:
    """The images of a finished request."""
    assert ticket.outcome
    return ticket.result().images
