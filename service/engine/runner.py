"""One model on the device: gathers rows into a batch, advances the batch by one step and distributes the results.

Batch invariance: a row's image has the same bytes alone and in any batch. The layers of the nets provide it
(`models/batch_invariant.py`), and `warm_up` verifies it: batches only have sizes for which this process has checked,
for this model, that the results equal those of the largest batch bit by bit.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import noise
from models.base import Family, Rows
from models.devices import use_reproducible_kernels
from models.pixels import to_pixels
from service.engine.graphs import CudaGraphs, Tensors, cuda_recorder
from service.engine.interpolation import slerp
from service.engine.request import ANY_LABEL, Edit, Request, Sample, StartState
from service.engine.transfers import to_device


class BatchTooLarge(Exception):
    """The device has no memory for a batch of this size."""


class RecordingsDiffer(Exception):
    """Two recordings of the same functions gave different bits."""


@dataclass(eq=False, slots=True)
class Batch:
    """The states of rows that were in one step."""

    state: Tensor
    """[size, *S]."""
    label: Tensor
    """[size, classes]."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Row:
    """One sample in progress."""

    sample: Sample
    schedule: NDArray[np.float32]
    """[steps, K], starting with the inversion of an image, if any."""
    guidance: float
    inversion_steps: int = 0
    """The number of steps of the inversion."""
    codes_only: bool = False
    """Whether the row is finished after the inversion."""
    edit: Edit | None = None
    """The image that the row starts from or completes: on the device, or on the host for a `SlotRunner`."""
    guesses: bool = False
    """Whether to keep what each step predicts as the final image."""
    previews: bool = False
    """Whether each step is to be followed by a preview."""
    noisy: bool = True
    """Whether any of its steps adds noise that its schedule sets."""
    guess: NDArray[np.uint8] | None = None
    """What the last step predicted."""
    batch: Batch | None = None
    """The batch that holds its state; None before its first step."""
    index: int = 0
    """Its position in that batch."""
    slot: Any = None
    """Where a `SlotRunner` keeps its state instead."""
    step: int = 0
    """The number of completed steps."""

    @property
    def total_steps(self) -> int:
        """The number of steps until the row is finished."""
        return self.inversion_steps if self.codes_only else len(self.schedule)

    @property
    def completes(self) -> bool:
        """Whether the row keeps a part of an image."""
        return self.edit is not None and self.edit.mask is not None

    @property
    def noise_key(self) -> tuple[int, int, int]:
        """Seed, index and step of the noise of the next step; inversions have none."""
        start = self.sample.start
        return start.seed, start.index, max(0, self.step - self.inversion_steps) + 1

    @property
    def next_guidance(self) -> float:
        """The guidance scale of the next step; 1 during the inversion."""
        return self.guidance if self.step >= self.inversion_steps else 1.0


class Runner:
    """A family on `device`, in batches of at most `max_batch_size` rows, a power of two."""

    def __init__(self, family: Family, device: torch.device, max_batch_size: int) -> None:
        self.family, self.device, self.max_batch_size = family, device, max_batch_size
        self.call: CudaGraphs | Callable[..., Tensors] = partial(_call_eagerly, family)
        """Calls `_initial_states`, `_next_states` or `decoded_images`, of which warm-up proves the recordings."""
        if device.type == "cuda":
            use_reproducible_kernels()
            self.call = CudaGraphs(family, cuda_recorder(device))
        self.joint_guidance = 0
        """`Rows.joint_guidance` of each step."""
        self.sizes = batch_sizes(max_batch_size, fine=device.type == "cpu")
        """The sizes that batches are padded to. The largest is the limit of the device's memory."""
        self.proven_sizes = self.sizes
        """The batch-invariant sizes, before any was found to be too large."""
        self.fingerprint = ""
        """A hash of the probes. With another fingerprint, the same seed may give other bytes."""
        self.schedule = lru_cache(maxsize=256)(partial(_schedule, family))  # does not refer to the runner
        self.inversion_schedule: NDArray[np.float32] = family.inversion_schedule().cpu().numpy()
        """The schedule from an encoded image to an initial state."""

    def rows(self, request: Request) -> list[Row]:
        """The rows of a request, before their first step."""
        strength = 1.0 if request.edit is None else request.edit.strength
        schedule = self.schedule(round(request.steps / strength), request.sampler)[-request.steps :]
        if request.inversion_steps:
            schedule = np.concatenate((self.inversion_schedule, schedule))
        edit = None if request.edit is None else self._send_edit(request.edit)
        options: dict[str, Any] = {
            "guesses": request.guesses,
            "previews": request.previews,
            "noisy": self._adds_noise(schedule),
        }
        return [
            Row(sample, schedule, request.guidance, request.inversion_steps, request.codes_only, edit, **options)
            for sample in request.samples
        ]

    def _adds_noise(self, schedule: NDArray[np.float32]) -> bool:
        column = self.family.noise_column
        return column is not None and bool(schedule[:, column].any())

    def labels(self, request: Request) -> NDArray[np.int64]:
        """The label [n] of each image: -1 for none, and for an interpolation between two different labels."""
        start = self._labels_of([sample.start for sample in request.samples])
        if not any(sample.end for sample in request.samples):
            return start
        end = self._labels_of([sample.end or sample.start for sample in request.samples])
        weight = np.array([sample.weight for sample in request.samples])
        between = (start != end) & (weight > 0) & (weight < 1)
        return np.where(between, -1, np.where(weight >= 1, end, start))

    def _labels_of(self, starts: list[StartState]) -> NDArray[np.int64]:
        """The label of each state, -1 for none. The seed decides about ANY_LABEL if the family samples labels."""
        requested = np.array([start.label for start in starts], np.int64)
        if not (self.family.samples_label and (requested == ANY_LABEL).any()):
            return np.maximum(requested, -1)
        seeds, indices = (torch.tensor([getattr(start, name) for start in starts]) for name in ("seed", "index"))
        sampled: NDArray[np.int64] = noise.classes(seeds, indices, self.family.classes).numpy()
        return np.maximum(np.where(requested == ANY_LABEL, sampled, requested), -1)

    @torch.inference_mode()
    def advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        """Advance every row by one step. Returns the images of finished rows, None for the others.

        Images are uint8 [H, W], or [H, W, 3] in colour.

        A row with `codes_only` ends at the initial state and returns that state [*S] float32.

        Raises FloatingPointError if a result is not finite, and BatchTooLarge if the device has no memory for the
        batch. BatchTooLarge limits later batches to smaller sizes, except after a failure with a single row, which says
        nothing about other rows. After an exception no row has advanced.
        """
        if len(rows) <= self.sizes[-1]:
            try:
                return self._advance(rows)
            except torch.OutOfMemoryError:
                pass  # leaving the handler releases the tensors that the error holds
            smaller = [size for size in self.sizes if size < self.size(len(rows))] or self.sizes[:1]
            self.sizes = self.proven_sizes if len(rows) == 1 else smaller
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise BatchTooLarge(f"not enough memory for a batch of {len(rows)}")

    @torch.inference_mode()
    def preview(self, rows: list[Row]) -> list[NDArray[np.uint8]]:
        """Images uint8 [H, W] or [H, W, 3] of the current states of rows that were just advanced together."""
        images, _ = self._receive(*self.call(decoded_images, self._gather(rows).state))
        return list(images[: len(rows)])

    def _advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        self._start([row for row in rows if row.batch is None])
        stepping = [row for row in rows if row.total_steps]
        if len(stepping) == len(rows):
            return self._step(stepping)
        # Before the step: if one of these codes is not finite, no row must have advanced.
        results: dict[Row, NDArray[Any] | None] = {
            row: _code(row.batch.state[row.index]) for row in rows if not row.total_steps and row.batch is not None
        }
        results |= zip(stepping, self._step(stepping), strict=True)
        return [results[row] for row in rows]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Find the batch-invariant sizes: those whose results equal the results of the largest size.

        The probes are different rows with different schedules, one of each sampler, with and without guidance. They
        also trigger all compilation and allocation of a first call. Recordings of a size must give equal bits when they
        are made again, as they are after a restart. Raises RecordingsDiffer if those of no size do.
        """
        sizes = list(self.sizes)
        while True:
            try:
                expected = self._probe(sizes[-1])
                if not self._recordings_agree(expected):
                    raise RecordingsDiffer(f"recordings of {sizes[-1]} rows give other bits when they are made again")
                break
            except (BatchTooLarge, torch.OutOfMemoryError, RecordingsDiffer):
                if len(sizes) == 1:
                    raise
            sizes.pop()
            for graphs in self._graphs():
                graphs.recordings.clear()
        self.fingerprint = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in expected)).hexdigest()
        proven = [sizes.pop()]
        for size in reversed(sizes):
            recorded = [dict(graphs.recordings) for graphs in self._graphs()]
            results = self._probe(size)
            if _equal(results, [part[:size] for part in expected]) and self._recordings_agree(results):
                proven.insert(0, size)
            else:
                for graphs, recordings in zip(self._graphs(), recorded, strict=True):
                    graphs.recordings = recordings  # frees those of this size
        self.sizes = self.proven_sizes = proven
        if self.device.type == "cpu" and self.family.guidance is not None:
            self._prove_joint_guidance()

    def _recordings_agree(self, results: list[Tensor]) -> bool:
        """Whether recordings that are made again give the `results` of a probe; True without recordings."""
        graphs = self._graphs()
        with ExitStack() as stack:
            for each in graphs:
                stack.enter_context(each.record_again())
            return not graphs or _equal(self._probe(len(results[0])), results)

    def _graphs(self) -> list[CudaGraphs]:
        """What makes and replays recordings; empty if functions are called instead."""
        return [self.call] if isinstance(self.call, CudaGraphs) else []

    def _prove_joint_guidance(self) -> None:
        """Let steps join both passes of guidance for as many rows as this gives the same bits.

        A joint pass is of twice the rows, and at most of the largest size, which the memory suffices for.
        """
        expected = self._probe(self.proven_sizes[-1], guided_rows=0)[0]
        for size in self.proven_sizes:
            proven, self.joint_guidance = self.joint_guidance, size
            if 2 * size > len(expected) or not torch.equal(self._probe(size, guided_rows=0)[0], expected[:size]):
                self.joint_guidance = proven
                break
        self.sizes = self.proven_sizes

    def _probe(self, size: int, guided_rows: int = 1) -> list[Tensor]:
        """The results of `size` probe rows in one batch. Even rows (0) or odd rows (1) have guidance.

        Their states after the first step, these states as images, and the codes of the images for a family that encodes
        in a single pass.
        """
        family, self.sizes = self.family, [size]
        schedules = [self.schedule(family.steps.minimum, sampler) for sampler in family.samplers or (None,)]
        rows = self._probe_rows(size, schedules, guided_rows)
        self.advance(rows)
        batch = self._gather(rows)
        images = family.decode(batch.state)
        results = [batch.state, images]
        if family.encodes and not family.inversion:
            results.append(family.encode(images, batch.label))
        return results

    def _probe_rows(self, size: int, schedules: list[NDArray[np.float32]], guided_rows: int) -> list[Row]:
        """`size` different rows with `schedules`. Even rows (0) or odd rows (1) have guidance."""
        classes, guidance = self.family.classes, self.family.guidance
        scale = 1.0 if guidance is None else guidance.default
        return [
            Row(
                Sample(StartState(i, i, i % classes if classes else -1)),
                schedules[i // 2 % len(schedules)],
                scale if i % 2 == guided_rows else 1.0,
                noisy=self._adds_noise(schedules[i // 2 % len(schedules)]),
            )
            for i in range(size)
        ]

    def size(self, count: int) -> int:
        """The smallest allowed batch size for `count` rows."""
        return next(size for size in self.sizes if size >= count)

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        """Stack the tensors of rows, padded to an allowed size by copies of the last row."""
        return torch.stack(tensors + tensors[-1:] * (self.size(len(tensors)) - len(tensors)))

    def _send(self, rows: list[Any], kind: type[np.generic]) -> Tensor:
        """Copy the numbers of rows to the device as [size, *], padded like `_stack`."""
        padding = self.size(len(rows)) - len(rows)
        return to_device(np.array(rows + rows[-1:] * padding, kind), self.device)

    def _send_edit(self, edit: Edit) -> Edit:
        """Copy the tensors of an edit to the device, once for all rows of its request."""
        mask = None if edit.mask is None else edit.mask.to(self.device)
        return edit._replace(image=edit.image.to(self.device), mask=mask)

    def _receive(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Copy tensors to NumPy arrays."""
        asynchronous = self.device.type == "cuda"
        copies = [tensor.to("cpu", non_blocking=asynchronous) for tensor in tensors]
        if asynchronous:
            torch.cuda.current_stream(self.device).synchronize()
        return [tensor.numpy() for tensor in copies]

    def _gather(self, rows: list[Row]) -> Batch:
        """The states of `rows` as one batch. Copies nothing if the rows are the first of their last batch, in order."""
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
        """Compute the initial state of every row."""
        if not rows:
            return
        batch = self._start_states([(row.sample.start, row.schedule[0]) for row in rows])
        interpolated = [
            (i, row.sample, row.sample.end, row.schedule[0]) for i, row in enumerate(rows) if row.sample.end
        ]
        if interpolated:
            ends = self._start_states([(end, coefficients) for _, _, end, coefficients in interpolated])
            batch = Batch(batch.state.clone(), batch.label.clone())
            for k, (i, sample, _, _) in enumerate(interpolated):
                interpolate = slerp if sample.spherical and 0 < sample.weight < 1 else torch.lerp
                weight = torch.tensor(sample.weight, device=self.device)
                batch.state[i] = interpolate(batch.state[i], ends.state[k], weight)
                batch.label[i] = torch.lerp(batch.label[i], ends.label[k], weight)
        edits = {i: row.edit for i, row in enumerate(rows) if row.edit is not None}
        if edits:
            batch = Batch(batch.state.clone(), batch.label)
            for i, state in zip(edits, self._noised([rows[i] for i in edits]), strict=False):  # states are padded
                batch.state[i] = state
        for i, row in enumerate(rows):
            row.batch, row.index = batch, i

    def _noised(self, rows: list[Row]) -> Tensor:
        """The initial states of rows that start from an image."""
        images = self._stack([row.edit.start for row in rows if row.edit is not None]).to(self.device)
        coefficients = self._send([row.schedule[0] for row in rows], np.float32)
        numbers = [(row.sample.start.seed, row.sample.start.index, noise.INITIAL_STEP) for row in rows]
        return _noised_states(self.family, images, coefficients, *self._send(numbers, np.int64).unbind(1))

    def _start_states(self, starts: list[tuple[StartState, NDArray[np.float32]]]) -> Batch:
        """The states of `starts`, each with the first line of its schedule."""
        requested = self._labels_of([start for start, _ in starts]).tolist()
        numbers = [(start.seed, start.index, label) for (start, _), label in zip(starts, requested, strict=True)]
        seed, index, label = self._send(numbers, np.int64).unbind(1)
        labels = self.family.one_hot(label)
        coefficients = self._send([line for _, line in starts], np.float32)
        (states,) = self.call(_initial_states, seed, index, labels, coefficients)
        images = {i: start.image for i, (start, _) in enumerate(starts) if start.image is not None}
        if images:
            image_labels = self._stack([labels[i] for i in images])
            codes = self.family.encode(self._stack(list(images.values())).to(self.device), image_labels)
            states = states.clone()
            for i, code in zip(images, codes, strict=False):  # codes are padded
                states[i] = code
        if any(start.code is not None for start, _ in starts):
            states = states.clone()
            for i, (start, _) in enumerate(starts):
                if start.code is not None:
                    states[i] = start.code.to(self.device)
        return Batch(states, labels)

    def _step(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        """Advance the rows by one step. Returns the images, or codes, of finished rows."""
        if not rows:
            return []
        before = self._gather(rows)
        seed, index, step = self._send([row.noise_key for row in rows], np.int64).unbind(1)
        coefficients = self._send([row.schedule[row.step] for row in rows], np.float32)
        guidance = self._send([row.next_guidance for row in rows], np.float32)
        numbers = coefficients, guidance, seed, index, step
        joint = self.joint_guidance
        (state,) = self.call(_next_states, before.state, before.label, *numbers, joint_guidance=joint)
        finished = [i for i, row in enumerate(rows) if row.step + 1 == row.total_steps]
        guessing = [i for i, row in enumerate(rows) if row.guesses and row.step + 1 < row.total_steps]
        if guessing:
            self._guess(rows, guessing, before.state, state)
        completing = [i for i, row in enumerate(rows) if row.completes and row.step + 1 < row.total_steps]
        if completing:
            state = self._restore_known(rows, completing, before.state, state)
        after = Batch(state, before.label)
        images: list[NDArray[Any] | None] = [None] * len(rows)
        decoded = [i for i in finished if not rows[i].codes_only]
        for i, image in zip(decoded, self._decode(after.state, decoded), strict=True):
            images[i] = restore_pixels(image, rows[i])
        for i in finished:
            if rows[i].codes_only:
                images[i] = _code(after.state[i])
        for i, row in enumerate(rows):
            row.batch, row.index, row.step = after, i, row.step + 1
        return images

    def _guess(self, rows: list[Row], chosen: list[int], before: Tensor, after: Tensor) -> None:
        """Keep what a step between two states predicted as the final images of the rows at `chosen`."""
        predicted = self.family.predicted(
            self._stack([before[i] for i in chosen]),
            self._stack([after[i] for i in chosen]),
            self._send([rows[i].schedule[rows[i].step] for i in chosen], np.float32),
        )
        (images,) = self._receive(to_pixels(predicted))
        for i, image in zip(chosen, images, strict=False):  # images are padded
            rows[i].guess = restore_pixels(image, rows[i])

    def _restore_known(self, rows: list[Row], chosen: list[int], before: Tensor, after: Tensor) -> Tensor:
        """The states `after` a step, where the rows at `chosen` continue from their predicted image with what is known.

        This image gets fresh noise for the time of the next step, as in the inpainting of consistency models (Song et
        al. 2023, arXiv 2303.01469, Algorithm 4) and PnP-Flow (Martin et al. 2025, arXiv 2410.02423). Fresh noise lets
        what is generated adapt to what is known, for which RePaint (Lugmayr et al. 2022) repeats steps.
        """
        completing = [rows[i] for i in chosen]
        edits = [(row.edit.image, row.edit.mask) for row in completing if row.edit is not None]
        states = _completed_states(
            self.family,
            self._stack([before[i] for i in chosen]),
            self._stack([after[i] for i in chosen]),
            self._send([row.schedule[row.step] for row in completing], np.float32),
            self._stack([image for image, _ in edits]),
            self._stack([mask for _, mask in edits if mask is not None]),
            self._send([row.schedule[row.step + 1] for row in completing], np.float32),
            *self._send([row.noise_key for row in completing], np.int64).unbind(1),
        )
        after = after.clone()
        for i, state in zip(chosen, states, strict=False):  # states are padded
            after[i] = state
        return after

    def _decode(self, states: Tensor, indices: list[int]) -> list[NDArray[np.uint8]]:
        """The images of the states at `indices`."""
        if not indices:
            return []
        if indices != list(range(len(indices))) or self.size(len(indices)) != len(states):
            states = self._stack([states[i] for i in indices])
        images, finite = self._receive(*self.call(decoded_images, states))
        if not finite[: len(indices)].all():
            raise FloatingPointError("the model's output is not finite")
        return list(images[: len(indices)])


def _call_eagerly(family: Family, function: Callable[..., Tensors], *inputs: Tensor, **options: Any) -> Tensors:
    return function(family, *inputs, **options)


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _initial_states(family: Family, *inputs: Tensor) -> Tensors:
    return (family.initial_state(*inputs),)


def _next_states(family: Family, *inputs: Tensor, joint_guidance: int) -> Tensors:
    """`inputs` are the tensors of Rows, in order."""
    state, label, coefficients, guidance, seed, index, step = inputs
    rows = Rows(state, label, coefficients, guidance, seed, index, step, joint_guidance=joint_guidance)
    return (family.step(rows),)


def _noised_states(
    family: Family, image: Tensor, coefficients: Tensor, seed: Tensor, index: Tensor, step: Tensor
) -> Tensor:
    return family.noised(image, coefficients, noise.normal(seed, index, step, family.data_shape))


def _completed_states(
    family: Family, before: Tensor, after: Tensor, coefficients: Tensor, image: Tensor, mask: Tensor, *next_step: Tensor
) -> Tensor:
    """`next_step` has the other inputs of `_noised_states`."""
    completed = torch.where(mask, family.predicted(before, after, coefficients), image)
    return _noised_states(family, completed, *next_step)


def decoded_images(family: Family, states: Tensor) -> Tensors:
    """Images uint8 [B, H, W], or [B, H, W, 3] in colour, and whether each was finite [B]."""
    images = family.decode(states)
    return to_pixels(images), images.isfinite().flatten(1).all(1)


def restore_pixels(image: NDArray[np.uint8], row: Row) -> NDArray[np.uint8]:
    """The finished image of a row, with the known pixels exactly as they were."""
    if row.edit is None or row.edit.mask is None:
        return image
    mask = row.edit.mask[0].cpu().numpy()
    known = to_pixels(row.edit.image[None])[0].cpu().numpy()
    return np.where(mask if image.ndim == 2 else mask[..., None], image, known)


def batch_sizes(largest: int, *, fine: bool) -> list[int]:
    """Batch sizes up to `largest`, a power of two: powers of two, or with `fine` all numbers of three binary digits.

    A GPU benefits from few sizes, because it records a graph for each. A CPU computes the padding, too, so it benefits
    from many.

    >>> batch_sizes(16, fine=True)
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    digits = 3 if fine else 1
    return [size for size in range(1, largest + 1) if size % (1 << max(0, size.bit_length() - digits)) == 0]


def _schedule(family: Family, steps: int, sampler: str | None) -> NDArray[np.float32]:
    schedule: NDArray[np.float32] = family.schedule(steps, sampler).cpu().numpy()
    return schedule


def _code(state: Tensor) -> NDArray[np.float32]:
    """The state of a row as an array. Raises FloatingPointError if it is not finite."""
    if not bool(state.isfinite().all()):
        raise FloatingPointError("the model's code is not finite")
    array: NDArray[np.float32] = state.cpu().numpy()
    return array
