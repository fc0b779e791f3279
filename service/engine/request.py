"""Requests to the engine, and the tickets of accepted requests.

Requests are named tuples, because frozen dataclasses take several times as long to create.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.engine.scheduler import Priority
from service.errors import POISON_REQUEST

ANY_LABEL, NO_LABEL = -1, -2
"""Labels of a request: any, which its seed determines for families that sample labels; none."""


class StartState(NamedTuple):
    """The initial state of a chain, from the noise of (seed, index), an image to encode or a code; and its label."""

    seed: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not used
    label: int = ANY_LABEL
    """A class, ANY_LABEL or NO_LABEL."""
    image: Tensor | None = None
    """[C, H, W] float32 in [-1, 1], encoded instead of the noise. Not for `Sample.end`, which takes a code."""
    code: Tensor | None = None
    """[*S] float32, the state itself."""


class Sample(NamedTuple):
    """One image of a request: sampled from `start`, or from the interpolation by `weight` between `start` and `end`."""

    start: StartState
    end: StartState | None = None
    weight: float = 0.0
    spherical: bool = True
    """Spherical interpolation, as noise is concentrated on a sphere (White 2016, arXiv 1609.04468); else linear."""


class Edit(NamedTuple):
    """An image that a request's chains start from or complete; for families with `edits`."""

    image: Tensor
    """[C, H, W] float32 in [-1, 1]."""
    strength: float
    """The share of the chain that runs, in (0, 1]: how much noise the image gets (SDEdit, Meng et al. 2022)."""
    mask: Tensor | None = None
    """[1, H, W] bool: the pixels to generate; the others keep the image's values. None: all."""

    @property
    def start(self) -> Tensor:
        """The image [C, H, W] that gets noise. At strength 1 it has nothing of the pixels to generate."""
        return self.image if self.mask is None or self.strength < 1 else self.image * ~self.mask


class Request(NamedTuple):
    """Images of one model with one schedule."""

    model: str
    samples: tuple[Sample, ...]
    steps: int
    sampler: str | None = None
    guidance: float = 1.0
    inversion_steps: int = 0
    """Steps from an image to the initial state."""
    codes_only: bool = False
    """Whether the result is the initial states instead of images."""
    edit: Edit | None = None
    priority: Priority = "interactive"
    timeout: float | None = None
    """Seconds from acceptance to the deadline."""
    previews: bool = False
    """Whether to update `Ticket.previews` after each step."""
    guesses: bool = False
    """Whether to update `Ticket.guesses` with them; for families with `edits`."""

    @property
    def steps_per_row(self) -> int:
        """Device steps per row."""
        return max(1, self.inversion_steps + (0 if self.codes_only else self.steps))


class Result(NamedTuple):
    """The result of a request: image i belongs to sample i."""

    images: NDArray[Any]
    """uint8 [n, H, W], or [n, H, W, 3] in colour; for `codes_only` the initial states, float32 [n, *S]."""
    labels: NDArray[np.int64]
    """[n], -1 for no label."""


class EngineError(Exception):
    """Why a request was refused, or ended without images."""


class QueueFull(EngineError):
    """The queue is full; it should have room after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineUnattainable(EngineError):
    """Even alone the request would take about `seconds`, longer than its timeout."""

    def __init__(self, seconds: float, timeout: float) -> None:
        super().__init__(f"this takes about {seconds:.1f} s even without other requests; its timeout is {timeout:g} s")
        self.seconds, self.timeout = seconds, timeout


class ModelUnloaded(EngineError):
    """The requested weights were unloaded."""

    def __init__(self) -> None:
        super().__init__("these weights were just replaced; send the request again")


class DeadlineExceeded(EngineError):
    """The deadline passed before the request was finished."""


class ShuttingDown(EngineError):
    """The engine is shutting down."""

    def __init__(
        self, reason: str = "the service is shutting down; try another instance, or retry in a moment"
    ) -> None:
        super().__init__(reason)


class PoisonRequest(EngineError):
    """Two engine processes died in steps with this request."""

    def __init__(self, reason: str = POISON_REQUEST) -> None:
        super().__init__(reason)


def noop() -> None:
    """Do nothing."""


@dataclass(eq=False, slots=True)
class Ticket:
    """An accepted request, which ends exactly once.

    The engine calls `on_update` after each step that finished images, updated previews or ended the request.
    """

    request: Request
    owner: str
    """The flow that the request belongs to: owners share a model's batch slots fairly."""
    images: list[NDArray[Any] | None]
    """One per sample, None until it is finished."""
    labels: NDArray[np.int64]
    remaining_images: int
    """Images that are not finished."""
    remaining_steps: int
    """Steps that the rows still need, summed over rows."""
    images_ahead: int = 0
    """Images of other requests that were outstanding at acceptance."""
    on_update: Callable[[], None] = noop
    outcome: str = ""
    """One of delivered, cancelled, failed, late, stopped; empty until the request ends. `refused`: another process has
    the engine, and it did not accept the request."""
    error: EngineError | None = None
    """The cause of the outcome failed, late, stopped or refused."""
    deadline: float = math.inf
    """In seconds of the engine's clock, as are the following times."""
    accepted_at: float = 0.0
    """0 until an engine in another process has accepted the request."""
    started_at: float | None = None
    """When its first row entered a batch."""
    finished_at: float | None = None
    max_batch_seen: int = 0
    """The largest number of rows in a batch with a row of this request."""
    previews: dict[int, NDArray[Any]] = field(default_factory=dict)
    """The newest preview of unfinished images, by sample. The reader removes what it has read."""
    guesses: dict[int, NDArray[Any]] = field(default_factory=dict)
    """What the last step predicted as the final image, beside each preview."""

    def result(self) -> Result:
        """The finished images. Raises the EngineError that the request ended with."""
        if self.error is not None:
            raise self.error
        return Result(np.array([image for image in self.images if image is not None]), self.labels)
