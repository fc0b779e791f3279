"""The tensors of rows in progress on a GPU, and what a step does with them.

A row has a slot: line `slot` of every tensor. Its numbers are sent once, when it enters. Functions of `Slots` get the
slots of a batch as a tensor and can be recorded: they read and write lines on the device alone.
"""

import math

import torch
from torch import Tensor

from models import noise
from models.base import Family, Rows
from service.engine.graphs import Tensors
from service.engine.runner import decoded_images

SEED, INDEX, DONE, INVERSION = range(4)
"""Columns of `Slots.numbers`: seed and index of the noise, completed steps, and how many of the first are inversion."""


class Slots:
    """Slots 0..capacity-1 for rows of `family`, and slot `capacity`, which pads batches and belongs to no row.

    Rows have at most `max_steps` steps. A step writes the new state beside the old one, so that it can be undone, and
    because what a step predicted is computed from both.
    """

    def __init__(self, family: Family, device: torch.device, capacity: int, max_steps: int) -> None:
        self.family, self.capacity, self.max_steps = family, capacity, max_steps
        lines = capacity + 1
        first = family.schedule(family.steps.minimum)[:1].to(device)
        zero, scale = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, device=device)
        label = torch.zeros(1, family.classes, device=device)
        before = family.initial_state(zero, zero, label, first)
        after = family.step(Rows(before, label, first, scale, zero, zero, zero + 1))
        self.shapes = before.shape[1:], after.shape[1:]
        """Of a state before and after a step; the same if chains have several steps."""
        self.states = torch.zeros(2 * lines, max(map(math.prod, self.shapes)), device=device)
        """The state after an even number of steps in line `slot`, after an odd number in line `lines + slot`."""
        self.labels = torch.zeros(lines, family.classes, device=device)
        self.schedules = torch.zeros(lines, max_steps + 1, first.shape[1], device=device)
        self.guidance = torch.ones(lines, device=device)
        self.numbers = torch.zeros(lines, 4, dtype=torch.int64, device=device)
        self.done = self.numbers[:, DONE]
        self.images: Tensor | None = None
        """[lines, *data_shape], the images of rows that complete one; allocated for the first such row."""
        self.masks: Tensor | None = None
        """[lines, 1, H, W] bool, the pixels to generate."""

    # -- rows enter and leave ------------------------------------------------------------------------------------------

    def enter(
        self, at: Tensor, numbers: Tensor, guidance: Tensor, schedules: Tensor, states: Tensor, labels: Tensor
    ) -> None:
        """Write the rows at slots `at` [B]: numbers [B, 4], guidance [B], schedules [B, L, K], states and labels."""
        self.numbers[at] = numbers
        self.guidance[at] = guidance
        self.schedules[at, : schedules.shape[1]] = schedules
        self.labels[at] = labels
        self._store(at, numbers[:, DONE], states)

    def keep_known(self, at: Tensor, images: Tensor, masks: Tensor) -> None:
        """Write what rows keep of an image: images [B, *data_shape] and masks [B, 1, H, W]."""
        if self.images is None or self.masks is None:
            lines = self.capacity + 1
            self.images, self.masks = (
                images.new_zeros(lines, *images.shape[1:]),
                masks.new_zeros(lines, *masks.shape[1:]),
            )
        self.images[at], self.masks[at] = images, masks

    def current_states(self, at: Tensor) -> Tensor:
        """The states [B, *S] of rows between two steps."""
        return self._load(at, self.done[at], self.shapes[0])

    def last_results(self, at: Tensor) -> Tensor:
        """The states [B, *S'] that the last step of rows gave, which `Family.decode` takes."""
        return self._load(at, self.done[at], self.shapes[1])

    def undo(self, at: Tensor) -> None:
        """Undo the last step of rows."""
        self.done[at] = (self.done[at] - 1).clamp(min=0)  # the padding may have made no step

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self, at: Tensor, *, guided: bool, noisy: bool) -> Tensors:
        """Advance the rows by one step. `guided` and `noisy` are those of `Rows`; the passes of guidance are joint."""
        seed, index, done, inversion = self.numbers[at].unbind(1)
        generated = done - inversion
        rows = Rows(
            self._load(at, done, self.shapes[0]),
            self.labels[at],
            self.schedules[at, done],
            self.guidance[at].masked_fill(generated < 0, 1.0),
            seed,
            index,
            generated.clamp(min=0) + 1,
            guided=guided,
            noisy=noisy,
            joint_guidance=len(at),
        )
        self._store(at, done + 1, self.family.step(rows))
        self.done[at] = (done + 1).clamp(max=self.max_steps)  # the padding has no end
        return ()

    def decode(self, at: Tensor) -> Tensors:
        """The states after a step as images, uint8 [B, H, W] or [B, H, W, 3], and whether each was finite [B]."""
        return decoded_images(self.family, self.last_results(at))

    def predicted(self, at: Tensor) -> Tensor:
        """The data [B, *data_shape] that the last step predicted as the end of the chain."""
        done = self.done[at]
        before, after = self._load(at, done - 1, self.shapes[0]), self._load(at, done, self.shapes[1])
        return self.family.predicted(before, after, self.schedules[at, done - 1])

    def restore_known(self, at: Tensor) -> None:
        """Let rows that complete an image continue from what the last step predicted, with what is known.

        `Runner._restore_known` says how.
        """
        assert self.images is not None
        assert self.masks is not None
        seed, index, done, inversion = self.numbers[at].unbind(1)
        completed = torch.where(self.masks[at], self.predicted(at), self.images[at])
        eps = noise.normal(seed, index, (done - 1 - inversion).clamp(min=0) + 1, self.family.data_shape)
        self._store(at, done, self.family.noised(completed, self.schedules[at, done], eps))

    def _load(self, at: Tensor, done: Tensor, shape: torch.Size) -> Tensor:
        """The states [B, *shape] of rows after `done` [B] steps."""
        states = self.states[at + (self.capacity + 1) * (done & 1)]
        return states[:, : math.prod(shape)].unflatten(1, shape)

    def _store(self, at: Tensor, done: Tensor, states: Tensor) -> None:
        values = states.flatten(1)
        self.states[at + (self.capacity + 1) * (done & 1), : values.shape[1]] = values
