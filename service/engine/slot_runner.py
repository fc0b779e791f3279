"""The runner for a CUDA GPU: tiles of rows whose states and numbers stay on the device.

- **Tiles.** A batch runs in tiles of at most `tile_rows` rows, so a row is always computed by the same kernels, however
  many rows there are. Smaller batches are padded to a proven size, as in `Runner`.
- **Slots.** A row's numbers go to the device once. A step of rows that were together before sends nothing; other rows
  need the list of their slots.
- **Kinds of tiles.** The host knows which rows have guidance. They are in tiles of their own, which run the net with
  and without labels as one batch of twice the size; other tiles run it once. Tiles of samplers without noise compute
  none.
- **Results.** `launch` returns while the device computes; `Launch.collect` waits for the results.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import kernels
from models.base import Family, Rows
from models.pixels import to_pixels
from service.engine.graphs import CudaGraphs, Record, Tensors, cuda_recorder
from service.engine.request import Edit, Request
from service.engine.runner import Batch, BatchTooLarge, Row, Runner, batch_sizes, decoded_images, restore_pixels
from service.engine.slots import Slots
from service.engine.transfers import CopyStream, Wait, to_device

log = logging.getLogger(__name__)

TILE_ROWS = 128
"""Rows of a tile. A step of diffusion took an H100 1.6 ms for 128 rows, 0.9 for one and 3.4 for 512. So a lone row that
is padded to a tile waits little longer than it has to, and many rows take at most twice the time of one large batch."""
TILE_SIZES = 4
"""Sizes that tiles may have: the largest is halved up to three times. Fewer rows take hardly less time, and each size
takes time to record."""
SLOTS_PER_BATCH = 4
"""Slots, as a multiple of the largest batch. Rows beyond them leave theirs between two steps."""
KEPT_LISTS = 256
"""Lists of slots that are kept on the device: those of tiles that ran last."""

Result = NDArray[Any] | FloatingPointError | None
"""Of a row in a step: its image or code, why it has none, or None if it is not finished."""


class Slot:
    """The number of a slot, taken from the list `free` and given back with the last reference."""

    __slots__ = ("free", "number", "used_at")

    def __init__(self, free: list[int]) -> None:
        self.free, self.number, self.used_at = free, free.pop(), 0

    def __del__(self) -> None:
        self.free.append(self.number)


class Results(NamedTuple):
    rows: list[Result]
    """In the order of the launched rows."""
    previews: dict[int, NDArray[np.uint8]]
    """The previews of unfinished rows that get one, by their position."""


class Launch(NamedTuple):
    """A step that the device may still be computing."""

    size: int
    """The rows that it computes, with padding."""
    collect: Callable[[], Results]
    """Waits for the results of the step. To be called once."""


class SlotRunner(Runner):
    """A family on a CUDA GPU, in batches of at most `max_batch_size` rows, a power of two.

    `record` makes recordings, and `receive` starts copies to the host and returns what waits for them: by default those
    of the GPU, which tests imitate.
    """

    def __init__(
        self,
        family: Family,
        device: torch.device,
        max_batch_size: int,
        *,
        tile_rows: int = TILE_ROWS,
        record: Record | None = None,
        receive: Callable[[Sequence[Tensor]], Wait] | None = None,
    ) -> None:
        super().__init__(family, device, max_batch_size)
        if device.type == "cuda":
            kernels.install(device)
        record = record or cuda_recorder(device)
        self.copy = receive or CopyStream(device)
        capacity = SLOTS_PER_BATCH * max_batch_size
        max_steps = family.steps.maximum + len(self.inversion_schedule)
        with torch.inference_mode():
            self.slots = Slots(family, device, capacity, max_steps)
        self.call = CudaGraphs(family, record)
        self.replay = CudaGraphs(self.slots, record, example=lambda at: torch.full_like(at, capacity))
        """Calls `Slots.step` or `Slots.decode`."""
        self.sizes = self.proven_sizes = batch_sizes(min(tile_rows, max_batch_size), fine=False)[-TILE_SIZES:]
        """The sizes that tiles are padded to."""
        self.most_rows = max_batch_size
        """The rows for which the device has memory."""
        self.free = list(range(capacity))
        self.holders: WeakSet[Row] = WeakSet()
        """Rows that have a slot."""
        self.lists: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        """Lists of slots on the device, the one used last at the end."""
        self.launches = 0
        self.samples_directly = family.steps.maximum == 1 and family.guidance is None
        """Whether images of one step from a seed are one recording, which warm-up proves to change no bit."""

    def rows(self, request: Request) -> list[Row]:
        rows = super().rows(request)
        if rows and len(rows[0].schedule) > self.slots.max_steps:
            raise ValueError(f"{len(rows[0].schedule)} steps; the most are {self.slots.max_steps}")
        return rows

    def size(self, count: int) -> int:
        """The rows that are computed for `count` rows: whole tiles, and the smallest proven size for the rest."""
        tile = self.sizes[-1]
        whole = count // tile * tile
        return whole + (super().size(count - whole) if count > whole else 0)

    def advance(self, rows: list[Row]) -> list[NDArray[Any] | None]:
        """Advance every row by one step and wait for the results, as `Runner.advance`.

        But after a FloatingPointError all rows have advanced.
        """
        results: list[NDArray[Any] | None] = []
        for result in self.launch(rows).collect().rows:
            if isinstance(result, FloatingPointError):
                raise result
            results.append(result)
        return results

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> Launch:
        """Let the device advance every row by one step.

        Raises BatchTooLarge if the device has no memory for it, now or for that many rows before. A failure with a
        single row says nothing about other rows. After an exception no row has advanced.
        """
        if len(rows) <= self.most_rows:
            try:
                return self._launch(rows)
            except torch.OutOfMemoryError:
                pass  # leaving the handler releases the tensors that the error holds
            self.most_rows = self.max_batch_size if len(rows) == 1 else len(rows) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise BatchTooLarge(f"not enough memory for a batch of {len(rows)}")

    @torch.inference_mode()
    def preview(self, rows: list[Row]) -> list[NDArray[np.uint8]]:
        """Images uint8 [H, W] or [H, W, 3] of the states of rows that were just advanced."""
        return list(np.concatenate(self.copy([images for images, _ in self._decode_rows(rows)])()))

    # -- a step --------------------------------------------------------------------------------------------------------

    def _launch(self, rows: list[Row]) -> Launch:
        self.launches += 1
        direct = [row for row in rows if _is_direct(row)] if self.samples_directly else []
        keeping = [row for row in rows if not _is_direct(row)] if direct else rows
        for row in keeping:
            if row.slot is not None:
                row.slot.used_at = self.launches
        for some in self._tiles([row for row in keeping if row.slot is None]):
            self._enter(some)
        sampled = [self._sample_directly(some) for some in self._tiles(direct)]
        stepping = [row for row in keeping if row.total_steps]
        tiles = [
            tile
            for guided in (False, True)
            for tile in self._tiles([row for row in stepping if self._is_guided(row) == guided])
        ]
        advanced: list[list[Row]] = []
        try:
            for tile in tiles:
                self._run_tile(tile)
                advanced.append(tile)
            collect = self._results(rows, stepping, direct, sampled)
        except BaseException:
            for tile in advanced:
                self.slots.undo(self._list(tile))
            raise
        for row in [*stepping, *direct]:
            row.step += 1
        ready = len(keeping) - len(stepping)
        return Launch(ready + sum(self.size(len(tile)) for tile in [*tiles, direct]), collect)

    def _is_guided(self, row: Row) -> bool:
        return row.guidance != 1.0 and self.family.guidance is not None

    def _sample_directly(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """The images of at most a tile of direct rows, and whether each is finite."""
        starts = [row.sample.start for row in rows]
        labels = self._labels_of(starts).tolist()
        numbers = self._send(
            [(start.seed, start.index, label) for start, label in zip(starts, labels, strict=True)], np.int64
        )
        columns = rows[0].schedule.shape[1]
        lines = (
            self._send([row.schedule[0] for row in rows], np.float32)
            if columns
            else torch.empty(len(numbers), 0, device=self.device)
        )
        images, finite = self.call(_sampled_images, numbers, lines)
        return images[: len(rows)], finite[: len(rows)]

    def _run_tile(self, tile: list[Row]) -> None:
        """Advance rows of which all or none have guidance."""
        noisy = any(row.noisy for row in tile)  # other rows add 0 times the noise
        self.replay(Slots.step, self._list(tile), guided=self._is_guided(tile[0]), noisy=noisy)

    def _results(
        self, rows: list[Row], stepping: list[Row], direct: list[Row], sampled: list[tuple[Tensor, Tensor]]
    ) -> Callable[[], Results]:
        """Start to read what the step that was just launched gave. Returns what waits for it.

        `sampled` has the images of the rows in `direct`.
        """
        unfinished = [row for row in stepping if row.step + 1 < row.total_steps]
        guessing = [row for row in unfinished if row.guesses]
        guesses = [self.slots.predicted(self._list(some))[: len(some)] for some in self._tiles(guessing)]
        for some in self._tiles([row for row in unfinished if row.completes]):
            self.slots.restore_known(self._list(some))
        finished = [row for row in stepping if row.step + 1 == row.total_steps and not row.codes_only]
        previewed = [row for row in unfinished if row.previews]
        decoded = [*sampled, *self._decode_rows([*finished, *previewed])]
        finished = [*direct, *finished]
        images, finite = [part for part, _ in decoded], [part for _, part in decoded]
        encoded = [row for row in rows if row.codes_only and row.step + 1 >= row.total_steps]
        codes = [self._codes(some) for some in self._tiles(encoded)]
        wait = self.copy([*images, *finite, *codes, *(to_pixels(guess) for guess in guesses)])

        def collect() -> Results:
            copies = iter(wait())
            pictures, are_finite, states, guessed = (
                [line for _ in parts for line in next(copies)] for parts in (images, finite, codes, guesses)
            )
            results: dict[Row, Result] = {}
            for row, image, is_finite in zip(finished, pictures, are_finite, strict=False):  # then previews
                results[row] = restore_pixels(image, row) if is_finite else _not_finite("output")
            for row, code in zip(encoded, states, strict=True):
                results[row] = code if np.isfinite(code).all() else _not_finite("code")
            for row, image in zip(guessing, guessed, strict=True):
                row.guess = restore_pixels(image, row)
            for row in results:
                row.slot = row.batch = None
            previews = dict(zip(previewed, pictures[len(finished) :], strict=True))
            positions = {row: i for i, row in enumerate(rows)} if previews else {}
            return Results([results.get(row) for row in rows], {positions[row]: previews[row] for row in previews})

        return collect

    def _decode_rows(self, rows: list[Row]) -> list[tuple[Tensor, Tensor]]:
        """The current states of rows as images, and whether each is finite; a pair for each tile."""
        return [
            (images[: len(some)], finite[: len(some)])
            for some in self._tiles(rows)
            for images, finite in [self.replay(Slots.decode, self._list(some))]
        ]

    def _codes(self, rows: list[Row]) -> Tensor:
        """The states of rows whose last step, if any, was just launched."""
        return self.slots.current_states(self._list(rows))[: len(rows)]

    def _tiles(self, rows: list[Row]) -> list[list[Row]]:
        tile = self.sizes[-1]
        return [rows[start : start + tile] for start in range(0, len(rows), tile)]

    def _list(self, rows: list[Row]) -> Tensor:
        """The slots of at most a tile of rows on the device, padded to a proven size."""
        padding = [self.slots.capacity] * (self.size(len(rows)) - len(rows))
        key = (*(row.slot.number for row in rows), *padding)
        if key in self.lists:
            self.lists.move_to_end(key)
        else:
            self.lists[key] = to_device(np.array(key), self.device)
            if len(self.lists) > KEPT_LISTS:
                self.lists.popitem(last=False)
        return self.lists[key]

    # -- rows get and lose their slots ---------------------------------------------------------------------------------

    def _enter(self, rows: list[Row]) -> None:
        """Give slots to at most a tile of rows, and compute the states of new ones."""
        self._start([row for row in rows if row.batch is None])
        batch, count = super()._gather(rows), len(rows)
        missing = count - len(self.free)
        if missing > 0:
            self._make_room(missing)
        slots = [Slot(self.free) for _ in rows]
        steps = max(len(row.schedule) for row in rows)
        schedules = np.zeros((count, steps, rows[0].schedule.shape[1]), np.float32)
        numbers = np.empty((count, 5), np.int64)
        for i, (row, slot) in enumerate(zip(rows, slots, strict=True)):
            start = row.sample.start
            numbers[i] = slot.number, start.seed, start.index, row.step, row.inversion_steps
            schedules[i, : len(row.schedule)] = row.schedule
        sent = to_device(numbers, self.device)
        at = sent[:, 0]
        guidance = to_device(np.array([row.guidance for row in rows], np.float32), self.device)
        schedule = to_device(schedules, self.device)
        self.slots.enter(at, sent[:, 1:], guidance, schedule, batch.state[:count], batch.label[:count])
        self._send_known([(slot.number, row.edit) for row, slot in zip(rows, slots, strict=True) if row.edit])
        for row, slot in zip(rows, slots, strict=True):
            slot.used_at = self.launches
            row.slot, row.batch = slot, None
            self.holders.add(row)

    def _send_known(self, edits: list[tuple[int, Edit]]) -> None:
        """Send what rows keep of an image, each with the number of its slot."""
        known = [(number, edit.image, edit.mask) for number, edit in edits if edit.mask is not None]
        if known:
            numbers, images, masks = zip(*known, strict=True)
            at = to_device(np.array(numbers), self.device)
            arrays = (torch.stack(tensors).numpy() for tensors in (images, masks))
            self.slots.keep_known(at, *(to_device(array, self.device) for array in arrays))

    def _send_edit(self, edit: Edit) -> Edit:
        """The edit on the host: `_enter` sends it."""
        return edit

    def _make_room(self, missing: int) -> None:
        """Let the `missing` rows that were stepped longest ago leave their slots, with a copy of their states."""
        waiting = [row for row in self.holders if row.slot is not None and row.slot.used_at < self.launches - 1]
        waiting.sort(key=lambda row: row.slot.used_at)
        for some in self._tiles(waiting[:missing]):
            batch = self._gather(some)
            for i, row in enumerate(some):
                row.slot, row.batch, row.index = None, batch, i

    def _gather(self, rows: list[Row]) -> Batch:
        at = self._list(rows)
        return Batch(self.slots.current_states(at), self.slots.labels[at])

    # -- warm-up -------------------------------------------------------------------------------------------------------

    def _graphs(self) -> list[CudaGraphs]:
        return [*super()._graphs(), self.replay]

    def _prove_joint_guidance(self) -> None:
        """Nothing: all rows with guidance are in joint passes, and no others are."""

    def _probe(self, size: int, guided_rows: int = 0) -> list[Tensor]:
        """The results of `size` rows for each kind of tile: states and images of two steps, and codes of images.

        `Runner._probe` describes the rows.
        """
        family, self.sizes = self.family, [size]
        results: list[Tensor] = []
        steps = min(max(2, family.steps.minimum), family.steps.maximum)
        schedules = [self.schedule(steps, sampler) for sampler in family.samplers or (None,)]
        schedules.sort(key=self._adds_noise, reverse=True)  # few rows have the first ones
        quiet = [schedule for schedule in schedules if not self._adds_noise(schedule)]
        for noisy, some in ((True, schedules), (False, quiet)):
            if some and self._adds_noise(some[0]) == noisy:
                results += self._probe_steps(self._probe_rows(size, some, 2), guided=False, noisy=noisy)
                if family.guidance is not None:
                    results += self._probe_steps(self._probe_rows(size, some, guided_rows), guided=True, noisy=noisy)
        if self.samples_directly:
            direct, _ = self._sample_directly(self._probe_rows(size, schedules, 2))
            if not torch.equal(direct, results[1]):
                log.warning("%s: recordings of whole chains give other bits, so they are not used", family.name)
                self.samples_directly = False
        return results

    def _probe_steps(self, rows: list[Row], *, guided: bool, noisy: bool) -> list[Tensor]:
        family, results = self.family, []
        self._enter(rows)
        at = self._list(rows)
        for _ in rows[0].schedule:
            self.replay(Slots.step, at, guided=guided, noisy=noisy)
            results += [self.slots.last_results(at), self.replay(Slots.decode, at)[0]]
        if family.encodes and not family.inversion:
            results.append(family.encode(family.decode(results[-2]), self.slots.labels[at]))
        return results


def _not_finite(what: str) -> FloatingPointError:
    return FloatingPointError(f"the model's {what} is not finite")


def _is_direct(row: Row) -> bool:
    """Whether a row without a slot is one step from a seed to an image."""
    start, end, steps = row.sample.start, row.sample.end, row.total_steps
    special = start.image is not None or start.code is not None or end is not None or row.edit is not None
    return steps == 1 and not special and not row.codes_only and row.slot is None and row.batch is None


def _sampled_images(family: Family, numbers: Tensor, coefficients: Tensor) -> Tensors:
    """The images of one step, and whether each is finite, for seeds, indices and labels as numbers [B, 3]."""
    seed, index, number = numbers.unbind(1)
    label = family.one_hot(number)
    state = family.initial_state(seed, index, label, coefficients)
    scale = torch.ones(len(numbers), device=numbers.device)
    step = torch.ones_like(seed)
    return decoded_images(family, family.step(Rows(state, label, coefficients, scale, seed, index, step, guided=False)))
