"""What a caller asks of the engine, and what he holds while he waits.

What is asked are named tuples, and not frozen dataclasses, which take several times as long to make.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.engine.scheduler import Priority


class StartState(NamedTuple):
    """Where a chain starts: the noise of (seed, index), an image to encode, or a code; and the digit it is drawn as."""

    seed: int
    index: int  # type: ignore[assignment]  # tuples have a method of this name, which is of no use here
    label: int = -1
    """-1: none was asked for."""
    image: Tensor | None = None
    """[1, 28, 28] float32 in [-1, 1], encoded in place of the noise. Not at the end of a way: that is a code."""
    code: Tensor | None = None
    """[*S] float32, the state itself."""


class Sample(NamedTuple):
    """One image of a request: drawn from `start`, or from `weight` of the way between `start` and `end`."""

    start: StartState
    end: StartState | None = None
    weight: float = 0.0
    spherical: bool = True
    """Along the sphere, as noise lies on one (White 2016, arXiv 1609.04468), or on the straight line."""


class Request(NamedTuple):
    """Images of one model by one plan."""

    model: str
    samples: tuple[Sample, ...]
    steps: int
    sampler: str | None = None
    guidance: float = 1.0
    inversion_steps: int = 0
    """Links from an image to where the chains start."""
    codes_only: bool = False
    """Whether the states where the chains start are all that is wanted."""
    priority: Priority = "interactive"
    timeout: float | None = None
    """Seconds after which nobody wants it any more."""
    previews: bool = False
    """Whether its caller looks at images under way."""

    @property
    def steps_per_row(self) -> int:
        """Device steps that a row of it takes."""
        return max(1, self.inversion_steps + (0 if self.codes_only else self.steps))


class Result(NamedTuple):
    """What was drawn: image i belongs to sample i."""

    images: NDArray[Any]
    """[n, 28, 28] uint8; or [n, *S] float32, the states, where codes were asked for."""
    labels: NDArray[np.int64]
    """[n], -1 where the model was asked for none."""


class EngineError(Exception):
    """Why an accepted request got no images."""


class QueueFull(EngineError):
    """Refused at once: `retry_after` seconds from now there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineUnattainable(EngineError):
    """Refused at once: it takes about `seconds` by itself, which is more than its timeout."""

    def __init__(self, seconds: float, timeout: float) -> None:
        super().__init__(f"this takes about {seconds:.1f} s by itself, and {timeout:g} s is all it has")
        self.seconds = seconds


class ModelUnloaded(EngineError):
    """Refused at once: what it asks for was replaced in the meantime."""

    def __init__(self) -> None:
        super().__init__("these weights were replaced just now; ask again")


class DeadlineExceeded(EngineError):
    """Its time was up before it was drawn."""


class ShuttingDown(EngineError):
    """The engine is being shut down."""


def noop() -> None:
    """Is told where nobody waits."""


@dataclass(eq=False, slots=True)
class Ticket:
    """An accepted request, which ends exactly once. `told` is called after a turn that drew some of it or ended it."""

    request: Request
    owner: str
    """Whose it is: owners share a model's seats."""
    images: list[NDArray[Any] | None]
    """One a sample, None until it is drawn."""
    labels: NDArray[np.int64]
    remaining_images: int
    """Images not drawn yet."""
    remaining_steps: int
    """Links of their chains that are still to go."""
    images_ahead: int = 0
    """Images that were accepted before and not ended then."""
    on_update: Callable[[], None] = noop
    outcome: str = ""
    """How: delivered, cancelled, failed, late, stopped; empty while it goes on."""
    error: EngineError | None = None
    """Why it failed, was late or stopped."""
    deadline: float = math.inf
    """By the engine's clock, like the following."""
    accepted_at: float = 0.0
    started_at: float | None = None
    """When its first row took a seat."""
    finished_at: float | None = None
    max_batch_seen: int = 0
    """The largest number of rows that a step of this request had on the device."""
    previews: dict[int, NDArray[Any]] = field(default_factory=dict)
    """Where the images under way stand, of those that have gone on since one last looked and took them out."""

    def result(self) -> Result:
        """All that was drawn. Raises the EngineError that it ended with."""
        if self.error is not None:
            raise self.error
        return Result(np.array([image for image in self.images if image is not None]), self.labels)
