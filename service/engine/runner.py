"""One model on the device: the rows that ride become one batch, go one link further, and come apart again.

Company changes nothing: a row's image is the same bytes alone and in any batch. The nets' layers see to it
(`models/steady.py`), and nothing is taken on trust: batches have sizes that this very process has proven, at warm-up
and for this model, to agree bit for bit with the largest.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import noise
from models.base import Family, Rows
from models.pixels import to_uint8
from service.engine.graphs import CudaGraphs, Tensors, cuda_recorder
from service.engine.request import Request, Sample, StartState


class BatchTooLarge(Exception):
    """More rows than fit on the device; fewer may."""


@dataclass(eq=False, slots=True)
class Batch:
    """Where rows that went together stand."""

    state: Tensor
    """[size, *S]."""
    label: Tensor
    """[size, classes]."""


@dataclass(eq=False, slots=True)
class Row:
    """A sample's place on the device."""

    sample: Sample
    schedule: NDArray[np.float32]
    """[steps, K], first the way back from an image where it begins with one."""
    guidance: float
    inversion_steps: int = 0
    """Links of the way back."""
    codes_only: bool = False
    """Whether it is done after these."""
    batch: Batch | None = None
    """What it went with last, once it has started."""
    index: int = 0
    """Its number in there."""
    step: int = 0
    """Links gone."""

    @property
    def total_steps(self) -> int:
        """Links after which it is done."""
        return self.inversion_steps if self.codes_only else len(self.schedule)

    @property
    def next_guidance(self) -> float:
        """The guidance of its next link."""
        return self.guidance if self.step >= self.inversion_steps else 1.0


class Runner:
    """A family on `device`, in batches of at most `seats` rows, a power of two."""

    def __init__(self, family: Family, device: torch.device, max_batch_size: int) -> None:
        self.family, self.device, self.max_batch_size = family, device, max_batch_size
        self.call = (
            CudaGraphs(family, cuda_recorder(device)) if device.type == "cuda" else partial(_call_eagerly, family)
        )
        """Calls `_started`, `_stepped` and `_drawn`."""
        self.sizes = batch_sizes(max_batch_size, fine=device.type == "cpu")
        """What batches are padded to; more rows than the last do not fit on the device."""
        self.proven_sizes = self.sizes
        """Those of them that agree, from before any was found to be too large."""
        self.fingerprint = ""
        """What the probes came to: where it is another, arithmetic is, and a seed may give other bytes."""
        self.schedule = lru_cache(maxsize=256)(
            partial(_schedule, family)
        )  # which holds no runner: it goes with its last user
        self.inversion_schedule: NDArray[np.float32] = family.inversion_schedule().cpu().numpy()
        """The plan from an image back to where a chain starts."""

    def rows(self, request: Request) -> list[Row]:
        """The request's rows, none of them started."""
        plan = self.schedule(request.steps, request.sampler)
        if request.inversion_steps:
            plan = np.concatenate((self.inversion_schedule, plan))
        return [
            Row(sample, plan, request.guidance, request.inversion_steps, request.codes_only)
            for sample in request.samples
        ]

    def labels(self, request: Request) -> NDArray[np.int64]:
        """The class [n] that each image is drawn as: -1 for none, and between two different ones."""
        start = self._classes([sample.start for sample in request.samples])
        if not any(sample.end for sample in request.samples):
            return start
        end = self._classes([sample.end or sample.start for sample in request.samples])
        weight = np.array([sample.weight for sample in request.samples])
        between = (start != end) & (weight > 0) & (weight < 1)
        return np.where(between, -1, np.where(weight >= 1, end, start))

    def _classes(self, points: list[StartState]) -> NDArray[np.int64]:
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

        A row that only wants its code is done where chains start, with that state [*S] float32 for an image. Raises
        FloatingPointError where a result is not finite, and TooMany where the device has no room for so many: batches
        are smaller from then on, unless it had none for a single row, which says nothing of batches of others. No row
        is further then than before.
        """
        if len(rows) <= self.sizes[-1]:
            try:
                return self._advance(rows)
            except torch.OutOfMemoryError:
                pass  # what holds the batch is gone with the error
            smaller = [size for size in self.sizes if size < self.size(len(rows))] or self.sizes[:1]
            self.sizes = self.proven_sizes if len(rows) == 1 else smaller
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise BatchTooLarge(f"no memory for {len(rows)} rows at once")

    @torch.inference_mode()
    def preview(self, rows: list[Row]) -> list[NDArray[np.uint8]]:
        """Images [28, 28] uint8 of where rows stand that have just gone a link further together."""
        images, _ = self._receive(*self.call(_decoded_images, self._gather(rows).state))
        return list(images[: len(rows)])

    def _advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        self._start([row for row in rows if row.batch is None])
        riding = [row for row in rows if row.total_steps]
        if len(riding) == len(rows):
            return self._step(riding)
        # First, so that none has gone a link further where one of these turns out to be no number.
        found: dict[Row, NDArray[Any] | None] = {
            row: _code(row.batch.state[row.index]) for row in rows if not row.total_steps and row.batch is not None
        }
        found |= zip(riding, self._step(riding), strict=True)
        return [found[row] for row in rows]

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
            except BatchTooLarge:
                if len(sizes) == 1:
                    raise
            sizes.pop()
        self.fingerprint = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in truth)).hexdigest()
        largest = sizes.pop()
        self.sizes = [
            size
            for size in sizes
            if all(torch.equal(few, many[:size]) for few, many in zip(self._probe(size), truth, strict=True))
        ] + [largest]
        self.proven_sizes = self.sizes

    def _probe(self, size: int) -> list[Tensor]:
        """What `size` probe rows come to, computed at once: their states after the first link, those as images, and the
        codes of these where one pass of the net gives them.
        """
        family, self.sizes = self.family, [size]
        plans = [self.schedule(family.steps.minimum, sampler) for sampler in family.samplers or (None,)]
        strengths = (1.0,) if family.guidance is None else (1.0, family.guidance.default)
        points = [StartState(i, i, i % family.classes if family.classes else -1) for i in range(size)]
        rows = [
            Row(Sample(point), plans[i // 2 % len(plans)], strengths[i % len(strengths)])
            for i, point in enumerate(points)
        ]
        self.advance(rows)
        batch = self._gather(rows)
        images = family.decode(batch.state)
        found = [batch.state, images]
        if family.encodes and not family.inversion:
            found.append(family.encode(images, batch.label))
        return found

    def size(self, count: int) -> int:
        """The smallest proven size for `count` rows."""
        return next(size for size in self.sizes if size >= count)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        """The rows as one batch, the last of them repeated up to a proven size."""
        return torch.stack(tensors + tensors[-1:] * (self.size(len(tensors)) - len(tensors)))

    def _send(self, rows: list[Any], kind: type[np.generic]) -> Tensor:
        """Numbers of every row as [size, *] on the device, likewise."""
        padding = self.size(len(rows)) - len(rows)
        numbers = torch.from_numpy(np.array(rows + rows[-1:] * padding, kind))
        # From memory that the GPU reads by itself, nobody waits until it has.
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers

    def _receive(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """They as arrays."""
        here = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # into memory that the GPU writes by itself
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return [tensor.numpy() for tensor in here]

    def _gather(self, rows: list[Row]) -> Batch:
        """Where the rows stand, as one batch: the very one that they went with last, if they are the first of it."""
        last, size = rows[0].batch, self.size(len(rows))
        assert last is not None
        if len(last.state) >= size and all(row.batch is last and row.index == i for i, row in enumerate(rows)):
            return last if len(last.state) == size else Batch(last.state[:size], last.label[:size])
        places = [(row.batch, row.index) for row in rows if row.batch is not None]
        return Batch(
            self._stack([batch.state[i] for batch, i in places]),
            self._stack([batch.label[i] for batch, i in places]),
        )

    def _start(self, rows: list[Row]) -> None:
        """Put every row where it starts."""
        if not rows:
            return
        batch = self._start_states([(row.sample.start, row.schedule[0]) for row in rows])
        between = [(row.sample, row.sample.end, row.schedule[0], i) for i, row in enumerate(rows) if row.sample.end]
        if between:
            ends = self._start_states([(end, link) for _, end, link, _ in between])
            batch = Batch(batch.state.clone(), batch.label.clone())
            for k, (sample, _, _, i) in enumerate(between):
                path = slerp if sample.spherical and 0 < sample.weight < 1 else torch.lerp
                weight = torch.tensor(sample.weight, device=self.device)
                batch.state[i] = path(batch.state[i], ends.state[k], weight)
                batch.label[i] = torch.lerp(batch.label[i], ends.label[k], weight)
        for i, row in enumerate(rows):
            row.batch, row.index = batch, i

    def _start_states(self, points: list[tuple[StartState, NDArray[np.float32]]]) -> Batch:
        """Where every point is, each with the first line of its plan."""
        asked = self._classes([point for point, _ in points]).tolist()
        numbers = [(point.seed, point.index, digit) for (point, _), digit in zip(points, asked, strict=True)]
        seed, index, label = self._send(numbers, np.int64).unbind(1)
        labels = self.family.one_hot(label)
        (states,) = self.call(
            _initial_states, seed, index, labels, self._send([link for _, link in points], np.float32)
        )
        shown = {i: point.image for i, (point, _) in enumerate(points) if point.image is not None}
        if shown:
            known = self._stack([labels[i] for i in shown])
            codes = self.family.encode(self._stack(list(shown.values())).to(self.device), known)
            states = states.clone()
            for i, code in zip(shown, codes, strict=False):  # which is padded
                states[i] = code
        if any(point.code is not None for point, _ in points):
            states = states.clone()
            for i, (point, _) in enumerate(points):
                if point.code is not None:
                    states[i] = point.code.to(self.device)
        return Batch(states, labels)

    def _step(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        """The rows one link further; the images, or codes, of those that are at their end."""
        if not rows:
            return []
        before = self._gather(rows)
        numbers = [
            (row.sample.start.seed, row.sample.start.index, max(0, row.step - row.inversion_steps) + 1) for row in rows
        ]
        seed, index, step = self._send(numbers, np.int64).unbind(1)
        link = self._send([row.schedule[row.step] for row in rows], np.float32)
        guidance = self._send([row.next_guidance for row in rows], np.float32)
        (state,) = self.call(_next_states, before.state, before.label, link, guidance, seed, index, step)
        after = Batch(state, before.label)
        ends = [i for i, row in enumerate(rows) if row.step + 1 == row.total_steps]
        images: list[NDArray[Any] | None] = [None] * len(rows)
        drawn = [i for i in ends if not rows[i].codes_only]
        for i, image in zip(drawn, self._decode(after.state, drawn), strict=True):
            images[i] = image
        for i in ends:
            if rows[i].codes_only:
                images[i] = _code(after.state[i])
        for i, row in enumerate(rows):
            row.batch, row.index, row.step = after, i, row.step + 1
        return images

    def _decode(self, states: Tensor, which: list[int]) -> list[NDArray[np.uint8]]:
        """The images of some of the states."""
        if not which:
            return []
        if which != list(range(len(which))) or self.size(len(which)) != len(states):
            states = self._stack([states[i] for i in which])
        images, finite = self._receive(*self.call(_decoded_images, states))
        if not finite[: len(which)].all():
            raise FloatingPointError("the model drew something that is not a number")
        return list(images[: len(which)])


def _call_eagerly(family: Family, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
    return function(family, *inputs)


def _initial_states(family: Family, *inputs: Tensor) -> Tensors:
    """Where rows start."""
    return (family.initial_state(*inputs),)


def _next_states(family: Family, *inputs: Tensor) -> Tensors:
    """They a link further: `inputs` are those of Rows."""
    return (family.step(Rows(*inputs)),)


def _decoded_images(family: Family, states: Tensor) -> Tensors:
    """Their images uint8 [B, 28, 28], and whether each was finite [B]."""
    images = family.decode(states)[:, 0]
    return to_uint8(images), images.isfinite().flatten(1).all(1)


def batch_sizes(most: int, *, fine: bool) -> list[int]:
    """Batch sizes up to `most`, a power of two: the powers of two, or `fine`, all numbers of three binary digits.

    A GPU is quick at sizes that it knows; a CPU computes what it is padded with.

    >>> sizes(16, fine=True)
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    digits = 3 if fine else 1
    return [size for size in range(1, most + 1) if size % (1 << max(0, size.bit_length() - digits)) == 0]


def _schedule(family: Family, steps: int, sampler: str | None) -> NDArray[np.float32]:
    plan: NDArray[np.float32] = family.schedule(steps, sampler).cpu().numpy()
    return plan


def _code(state: Tensor) -> NDArray[np.float32]:
    """A row's state as an array. Raises FloatingPointError where it is not finite."""
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
