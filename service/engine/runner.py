"""One model on the device: the rows that ride become one batch, go one link further, and come apart again.

Company changes nothing: a row's image is the same bytes alone and in any batch. Arithmetic does not give that for
free. A GEMM or convolution library picks its kernel, and with it the order of the sums, by the batch's size: on CPU the
results at sizes 1, 2 or 3 can differ in the last bit from those of 4 and more. So batches are padded to a few sizes
that this very process has proven, at warm-up and for this model, to agree bit for bit.
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


@dataclass(eq=False)
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
    """A family on `device`, and the batch sizes it may run at: powers of two up to `seats`, which is one."""

    def __init__(self, family: Family, device: torch.device, seats: int) -> None:
        self.family, self.device = family, device
        self.buckets = [1 << k for k in range(seats.bit_length())]
        self.plan = lru_cache(maxsize=256)(self._plan)

    def rows(self, request: Request) -> list[Row]:
        """The request's rows, none of them started."""
        plan = self.plan(request.steps, request.sampler)
        return [Row(sample, plan, request.guidance, request.codes) for sample in request.samples]

    def labels(self, request: Request) -> NDArray[np.int64]:
        """The class [n] that each image is drawn as: -1 for none, and between two different ones."""
        start = self._classes([sample.start for sample in request.samples])
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
        FloatingPointError where a result is not finite. Rows change only if all goes well.
        """
        fresh = [row for row in rows if row.at is None]
        started = dict(zip(fresh, self._start(fresh), strict=True))
        results: dict[Row, NDArray[Any]] = {row: _code(started[row][0]) for row in rows if row.codes}
        riding = [row for row in rows if not row.codes]
        labels = [(row.at or started[row])[1] for row in riding]
        states = self._step(riding, [(row.at or started[row])[0] for row in riding], labels)
        ends = [i for i, row in enumerate(riding) if row.step + 1 == len(row.plan)]
        images = self._decode([states[i] for i in ends])
        results |= {riding[i]: image for i, image in zip(ends, images, strict=True)}
        for row, state, label in zip(riding, states, labels, strict=True):
            row.at, row.step = (state, label), row.step + 1
        return [results.get(row) for row in rows]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Prove which buckets agree with the largest, and keep those; compiles and allocates what a first call would.

        The probes are different rows on different plans, those of every sampler, and with and without guidance.
        """
        *smaller, largest = self.buckets
        truth = self._probe(largest, largest)
        agreeing = []
        for bucket in smaller:
            states = self._probe(min(max(bucket, 8), largest), bucket)
            if all(torch.equal(state, truth[place]) for place, state in states.items()):
                agreeing.append(bucket)
        self.buckets = [*agreeing, largest]

    def _probe(self, count: int, bucket: int) -> dict[tuple[int, int], Tensor]:
        """The states of probe rows 0..count-1 after every link, by (row, link), computed `bucket` rows at a time."""
        family, self.buckets = self.family, [bucket]
        steps = min(3, family.steps.maximum)
        plans = [self.plan(steps, sampler) for sampler in family.samplers or (None,)]
        strengths = (1.0,) if family.guidance is None else (1.0, family.guidance.default)
        points = [Point(i, i, i % family.classes if family.classes else -1) for i in range(count)]
        rows = [
            Row(Sample(point), plans[i // 2 % len(plans)], strengths[i % len(strengths)])
            for i, point in enumerate(points)
        ]
        states: dict[tuple[int, int], Tensor] = {}
        for first in range(0, count, bucket):
            for link in range(steps):
                self.advance(rows[first : first + bucket])
                states |= {(i, link): row.at[0] for i, row in enumerate(rows[first : first + bucket], first) if row.at}
        return states

    def _plan(self, steps: int, sampler: str | None) -> Tensor:
        return self.family.plan(steps, sampler).to(self.device)

    def _bucket(self, count: int) -> int:
        """The smallest proven size for `count` rows."""
        return next(size for size in self.buckets if size >= count)

    def _padded(self, tensors: list[Tensor]) -> Tensor:
        """The rows as one batch, the last of them repeated up to the bucket's size."""
        return torch.stack(tensors + tensors[-1:] * (self._bucket(len(tensors)) - len(tensors)))

    def _start(self, rows: list[Row]) -> list[tuple[Tensor, Tensor]]:
        """State and label of every row's start."""
        if not rows:
            return []
        starts = self._points([(row.sample.start, row.plan[0]) for row in rows])
        between = [(i, row.sample.end, row.plan[0]) for i, row in enumerate(rows) if row.sample.end is not None]
        ends = self._points([(end, link) for _, end, link in between])
        for (i, _, _), (state, label) in zip(between, ends, strict=True):
            sample = rows[i].sample
            path = slerp if sample.spherical else torch.lerp
            weight = torch.tensor(sample.weight, device=self.device)
            starts[i] = path(starts[i][0], state, weight), torch.lerp(starts[i][1], label, weight)
        return starts

    def _points(self, points: list[tuple[Point, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """State and label of every point, each with the first line of its plan."""
        if not points:
            return []
        size = self.buckets[-1]
        if len(points) > size:
            return self._points(points[:size]) + self._points(points[size:])
        padded = [point for point, _ in points + points[-1:] * (self._bucket(len(points)) - len(points))]
        labels = self.family.one_hot(torch.from_numpy(self._classes(padded)).to(self.device))
        seeds, indices = (self._integers([getattr(point, name) for point in padded]) for name in ("seed", "index"))
        states = list(self.family.start(seeds, indices, labels, self._padded([link for _, link in points])).unbind())
        # Encoding may cost as much as a whole chain, so the two ends of many frames are encoded once.
        shown = {(id(point.image), point.label): i for i, point in enumerate(padded) if point.image is not None}
        if shown:
            images = [image for i in shown.values() if (image := padded[i].image) is not None]
            codes = self.family.encode(
                self._padded(images).to(self.device), self._padded([labels[i] for i in shown.values()])
            )
            code = dict(zip(shown, codes, strict=False))
            states = [
                state if point.image is None else code[id(point.image), point.label]
                for state, point in zip(states, padded, strict=True)
            ]
        return list(zip(states[: len(points)], labels[: len(points)].unbind(), strict=True))

    def _step(self, rows: list[Row], states: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        if not rows:
            return []
        padding = self._bucket(len(rows)) - len(rows)
        padded = rows + rows[-1:] * padding
        state = self.family.step(
            Rows(
                state=self._padded(states),
                label=self._padded(labels),
                link=torch.stack([row.plan[row.step] for row in padded]),
                guidance=torch.tensor([row.guidance for row in padded], dtype=torch.float32, device=self.device),
                seed=self._integers([row.sample.start.seed for row in padded]),
                index=self._integers([row.sample.start.index for row in padded]),
                step=self._integers([row.step + 1 for row in padded]),
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

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


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
