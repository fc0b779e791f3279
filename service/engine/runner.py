"""One model on the device: the rows that ride become one batch, go one link further, and come apart again.

Company changes nothing: a row's image is the same bytes alone and in any batch. The nets' layers see to it
(`models/steady.py`), and nothing is taken on trust: batches have sizes that this very process has proven, at warm-up
and for this model, to agree bit for bit with the largest.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import noise
from models.base import Family, Rows
from models.pixels import to_uint8
from service.engine.request import Point, Request, Sample


class TooMany(Exception):
    """More rows than fit on the device; fewer may."""


@dataclass(eq=False, slots=True)
class Row:
    """A sample's place on the device."""

    sample: Sample
    plan: Tensor
    """[steps, K] float32."""
    guidance: float
    codes: bool = False
    """Whether it is done where it starts."""
    at: tuple[Tensor, Tensor] | None = None
    """State [*S] and label [classes] once it has started."""
    step: int = 0
    """Links gone."""


class Runner:
    """A family on `device`, in batches of at most `seats` rows, a power of two."""

    def __init__(self, family: Family, device: torch.device, seats: int) -> None:
        self.family, self.device = family, device
        self.sizes = sizes(seats, fine=device.type == "cpu")
        """What batches are padded to; more rows than the last do not fit on the device."""
        self.plan = lru_cache(maxsize=256)(self._plan)

    def rows(self, request: Request) -> list[Row]:
        """The request's rows, none of them started."""
        plan = self.plan(request.steps, request.sampler)
        return [Row(sample, plan, request.guidance, request.codes) for sample in request.samples]

    def labels(self, request: Request) -> NDArray[np.int64]:
        """The class [n] that each image is drawn as: -1 for none, and between two different ones."""
        start = self._classes([sample.start for sample in request.samples])
        if not any(sample.end for sample in request.samples):
            return start
        end = self._classes([sample.end or sample.start for sample in request.samples])
        weight = np.array([sample.weight for sample in request.samples])
        between = (start != end) & (weight > 0) & (weight < 1)
        return np.where(between, -1, np.where(weight >= 1, end, start))

    def _classes(self, points: list[Point]) -> NDArray[np.int64]:
        """The class that each point asks for, else -1, or one that its seed decides where the family needs one."""
        asked = np.array([point.label for point in points], np.int64)
        if not self.family.classes or self.family.unconditional or (asked >= 0).all():
            return asked
        seeds, indices = (torch.tensor([getattr(point, name) for point in points]) for name in ("seed", "index"))
        drawn: NDArray[np.int64] = noise.classes(seeds, indices, self.family.classes).numpy()
        return np.where(asked >= 0, asked, drawn)

    @torch.inference_mode()
    def advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        """Take every row one link further. The images [28, 28] uint8 of those that are done, None for the others.

        A row that only wants its code is done where it starts, with that state [*S] float32 for an image. Raises
        FloatingPointError where a result is not finite, and TooMany where the device has no room for so many: batches
        are smaller from then on. No row is further then than before.
        """
        if len(rows) <= self.sizes[-1]:
            try:
                return self._advance(rows)
            except torch.OutOfMemoryError:
                pass  # what holds the batch is gone with the error
            self.sizes = [size for size in self.sizes if size < self._size(len(rows))] or self.sizes[:1]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise TooMany(f"no memory for {len(rows)} rows at once")

    def _advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        self._start([row for row in rows if row.at is None])
        results: dict[Row, NDArray[Any]] = {row: _code(row.at[0]) for row in rows if row.codes and row.at}
        riding = [row for row in rows if not row.codes]
        states = self._step(riding)
        ends = [i for i, row in enumerate(riding) if row.step + 1 == len(row.plan)]
        images = self._decode([states[i] for i in ends])
        results |= {riding[i]: image for i, image in zip(ends, images, strict=True)}
        for row, state in zip(riding, states, strict=True):
            assert row.at is not None
            row.at, row.step = (state, row.at[1]), row.step + 1
        return [results.get(row) for row in rows]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Prove which sizes agree with the largest, and keep those; compiles and allocates what a first call would.

        The probes are different rows on different plans, those of every sampler, and with and without guidance.
        """
        sizes = list(self.sizes)
        while True:
            try:
                truth = self._probe(sizes[-1])
                break
            except TooMany:
                if len(sizes) == 1:
                    raise
            sizes.pop()
        largest = sizes.pop()
        self.sizes = [
            size
            for size in sizes
            if all(torch.equal(few, many[:size]) for few, many in zip(self._probe(size), truth, strict=True))
        ] + [largest]

    def _probe(self, size: int) -> list[Tensor]:
        """What `size` probe rows come to, computed at once: their states after the first link, those as images, and the
        codes of these where one pass of the net gives them.
        """
        family, self.sizes = self.family, [size]
        plans = [self.plan(family.steps.minimum, sampler) for sampler in family.samplers or (None,)]
        strengths = (1.0,) if family.guidance is None else (1.0, family.guidance.default)
        points = [Point(i, i, i % family.classes if family.classes else -1) for i in range(size)]
        rows = [
            Row(Sample(point), plans[i // 2 % len(plans)], strengths[i % len(strengths)])
            for i, point in enumerate(points)
        ]
        self.advance(rows)
        places = [row.at for row in rows if row.at]
        states = torch.stack([state for state, _ in places])
        images = family.decode(states)
        found = [states, images]
        if family.encodes and not family.inversion:
            found.append(family.encode(images, torch.stack([label for _, label in places])))
        return found

    def _plan(self, steps: int, sampler: str | None) -> Tensor:
        return self.family.plan(steps, sampler).to(self.device)

    def _size(self, count: int) -> int:
        """The smallest proven size for `count` rows."""
        return next(size for size in self.sizes if size >= count)

    def _padded(self, tensors: list[Tensor]) -> Tensor:
        """The rows as one batch, the last of them repeated up to a proven size."""
        return torch.stack(tensors + tensors[-1:] * (self._size(len(tensors)) - len(tensors)))

    def _integers(self, rows: list[tuple[int, int, int]]) -> tuple[Tensor, ...]:
        """The columns [size] int64 of `rows`, the last of them repeated up to a proven size."""
        padding = self._size(len(rows)) - len(rows)
        columns = np.array(rows + rows[-1:] * padding, np.int64).T.copy()
        return torch.from_numpy(columns).to(self.device).unbind()

    def _start(self, rows: list[Row]) -> None:
        """Put every row where it starts."""
        if not rows:
            return
        starts = self._points([(row.sample.start, row.plan[0]) for row in rows])
        between = [(row.sample.end, row.plan[0]) for row in rows if row.sample.end is not None]
        ends = iter(self._points(between))
        for row, (state, label) in zip(rows, starts, strict=True):
            at = state, label
            if row.sample.end is not None:
                path = slerp if row.sample.spherical and 0 < row.sample.weight < 1 else torch.lerp
                weight = torch.tensor(row.sample.weight, device=self.device)
                last_state, last_label = next(ends)
                at = path(state, last_state, weight), torch.lerp(label, last_label, weight)
            row.at = at

    def _points(self, points: list[tuple[Point, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """State and label of every point, each with the first line of its plan."""
        if not points:
            return []
        asked = self._classes([point for point, _ in points]).tolist()
        seed, index, label = self._integers(
            [(point.seed, point.index, digit) for (point, _), digit in zip(points, asked, strict=True)]
        )
        labels = self.family.one_hot(label)
        states = self.family.start(seed, index, labels, self._padded([link for _, link in points]))
        found = list(zip(states.unbind(), labels.unbind(), strict=True))[: len(points)]
        # Encoding may cost as much as a whole chain, so the two ends of many frames are encoded once.
        shown = {(id(point.image), point.label): i for i, (point, _) in enumerate(points) if point.image is not None}
        if shown:
            images = [image for i in shown.values() if (image := points[i][0].image) is not None]
            known = self._padded([labels[i] for i in shown.values()])
            code = dict(zip(shown, self.family.encode(self._padded(images).to(self.device), known), strict=False))
            found = [
                (code.get((id(point.image), point.label), state), label)
                for (point, _), (state, label) in zip(points, found, strict=True)
            ]
        return found

    def _step(self, rows: list[Row]) -> list[Tensor]:
        """The rows' states one link further."""
        if not rows:
            return []
        places = [row.at for row in rows if row.at is not None]
        start = [(row.sample.start.seed, row.sample.start.index, row.step + 1) for row in rows]
        seed, index, step = self._integers(start)
        strengths = [row.guidance for row in rows]
        state = self.family.step(
            Rows(
                state=self._padded([state for state, _ in places]),
                label=self._padded([label for _, label in places]),
                link=self._padded([row.plan[row.step] for row in rows]),
                guidance=torch.tensor(strengths + strengths[-1:] * (len(seed) - len(rows)), device=self.device),
                seed=seed,
                index=index,
                step=step,
            )
        )
        return list(state[: len(rows)].unbind())

    def _decode(self, states: list[Tensor]) -> list[NDArray[np.uint8]]:
        if not states:
            return []
        images = self.family.decode(self._padded(states))[: len(states), 0]
        if not bool(images.isfinite().all()):
            raise FloatingPointError("the model drew something that is not a number")
        return list(to_uint8(images).cpu().numpy())


def sizes(most: int, *, fine: bool) -> list[int]:
    """Batch sizes up to `most`, a power of two: the powers of two, or `fine`, all numbers of three binary digits.

    A GPU is quick at sizes that it knows; a CPU computes what it is padded with.

    >>> sizes(16, fine=True)
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    digits = 3 if fine else 1
    return [size for size in range(1, most + 1) if size % (1 << max(0, size.bit_length() - digits)) == 0]


def _code(state: Tensor) -> NDArray[np.float32]:
    """A state as an array. Raises FloatingPointError where it is not finite."""
    if not bool(state.isfinite().all()):
        raise FloatingPointError("the model's code is not a number")
    array: NDArray[np.float32] = state.cpu().numpy()
    return array


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """`weight` of the way from a to b along the great circle between them, their lengths going over linearly."""
    length_a, length_b = a.norm(), b.norm()
    cosine = ((a * b).sum() / (length_a * length_b).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    # Parallel, as far as float32's cosine can tell: the circle is the line.
    if float(angle.sin()) < 1e-3 or min(float(length_a), float(length_b)) < 1e-4:
        return torch.lerp(a, b, weight)
    unit = (((1 - weight) * angle).sin() * a / length_a + (weight * angle).sin() * b / length_b) / angle.sin()
    return unit * torch.lerp(length_a, length_b, weight)
