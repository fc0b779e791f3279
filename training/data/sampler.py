"""The order in which training visits the images of a data set."""

from collections.abc import Iterator

import torch
from torch import Tensor


class InfiniteSampler(Iterator[Tensor]):
    """An endless iterator over full batches of indices, [batch] int64 each.

    Every epoch is a permutation, a pure function of (seed, epoch). A batch may span epochs, so every epoch visits every
    image once, no batch is short, and a batch may be larger than the data set.
    """

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size, self.batch, self.seed = size, batch, seed
        self.epoch, self.position = 0, 0
        self.order = self._permutation()

    def __next__(self) -> Tensor:
        parts, wanted = [], self.batch
        while wanted:
            part = self.order[self.position : self.position + wanted]
            parts.append(part)
            self.position += len(part)
            wanted -= len(part)
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self.order = self._permutation()
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        """The position in the data: epoch, and index within it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the position that `state` holds."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator)
