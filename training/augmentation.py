"""Augmentation: random mirroring and shifting of the training images, batch by batch."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models import parallel


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an image each time that training uses it."""

    flip: bool = False
    """Mirror it, left to right, half of the times."""
    shift: int = 0
    """Move it by up to so many pixels along both axes; what comes in repeats the border."""

    def to_json(self) -> dict[str, Any]:
        """The values that are not off."""
        return {name: value for name, value in asdict(self).items() if value}

    def __call__(self, images: Tensor, seed: int, images_seen: int) -> Tensor:
        """Transform this process's images [B, C, H, W] of a batch.

        The transformations are a pure function of the run's seed and progress, for any number of processes.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + images_seen + 2**40)
        count = len(images) * parallel.size()
        mirrored, *offsets = (
            parallel.shard(torch.randint(low, high, (count, 1), generator=generator))
            for low, high in ((0, 1 + self.flip), *[(-self.shift, self.shift + 1)] * 2)
        )
        rows, columns = (
            (torch.arange(length) + offset).clamp(0, length - 1)
            for length, offset in zip(images.shape[2:], offsets, strict=True)
        )
        columns = torch.where(mirrored == 1, images.shape[3] - 1 - columns, columns)
        image = torch.arange(len(images))[:, None, None, None]
        channel = torch.arange(images.shape[1])[:, None, None]
        return images[image, channel, rows[:, None, :, None], columns[:, None, None]]
