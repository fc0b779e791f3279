"""A family whose every number can be foreseen, and what an engine over it is asked."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import noise
from models.base import Family, Range, Rows
from service.engine.engine import Engine
from service.engine.request import Request, Sample, StartState


@dataclass(frozen=True)
class NoConfig:
    pass


class Walk(Family):
    """A random walk of as many steps as asked for. Label 9 breaks it, label 8 walks off to infinity."""

    Config = NoConfig
    conditional = True
    steps = Range(1, 100, 5)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.zeros_like(seed), (28, 28))

    def step(self, rows: Rows) -> Tensor:
        label = rows.label.argmax(1)
        if bool((rows.label[:, 9] == 1).any()):
            raise RuntimeError("label 9 is not allowed")
        pushed = rows.state * 0.8 + 0.1 * label.view(-1, 1, 1)
        walked = pushed + 0.3 * noise.normal(rows.seed, rows.index, rows.step, (28, 28))
        return torch.where((rows.label[:, 8] == 1).view(-1, 1, 1), torch.inf, walked)

    def decode(self, state: Tensor) -> Tensor:
        return torch.where(state.isinf(), state, (state / 4).clamp(-1, 1))[:, None]


class Clock:
    """Ticks a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


SEATS = 8


def ask(n: int = 1, *, seed: int = 0, first: int = 0, steps: int = 5, label: int = 1, model: str = "walk") -> Request:
    """n images of one label."""
    return Request(model, tuple(Sample(StartState(seed, first + i, label)) for i in range(n)), steps)


def finish(engine: Engine) -> int:
    """Turn until nobody waits; how many turns that took."""
    turns = 0
    while engine.step():
        turns += 1
    return turns


def images(ticket: Any) -> Any:
    assert ticket.outcome
    return ticket.result().images
