"""What a run shows of itself: samples of the same noise each time, as a picture and as one number."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.base import Family, sample
from models.pixels import to_uint8, to_unit
from training.data import Dataset

COUNT = 512


@torch.inference_mode()
def fixed_samples(family: Family, device: torch.device, count: int = COUNT, **asked: Any) -> Tensor:
    """Data [count, *data_shape] of seed 0, the classes in turn; always of the same noise.

    `asked` goes to `draw`: `steps`, `sampler`, `guidance`; left out, the family's steps and no guidance.
    """
    asked = {"steps": family.steps.default, **asked}
    parts = []
    for first in range(0, count, 64):
        index = torch.arange(first, min(first + 64, count), device=device)
        label = family.one_hot(index % max(family.classes, 1))
        parts.append(sample(family, torch.zeros_like(index), index, label, **asked))
    return torch.cat(parts).cpu()


def distance(samples: Tensor, data: Dataset, projections: int = 256) -> float:
    """Sliced 2-Wasserstein distance from samples [N, *data_shape] to the first N of the data, on fixed directions.

    It needs no other model, takes data of any shape, and sees collapse; it picks the best checkpoint and is no
    measure of quality beyond that (Bonneel et al. 2015).
    """
    count = min(len(samples), len(data.images))
    x, y = samples[:count].flatten(1), to_unit(data.images[:count]).flatten(1)
    directions = torch.randn(x.shape[1], projections, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=0)
    gap = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return float(gap.square().mean().sqrt())


def grid_png(samples: Tensor, columns: int = 10, rows: int = 10) -> bytes:
    """The first columns * rows of samples [N, 1, H, W] in [-1, 1] as one PNG, row by row."""
    images = to_uint8(samples[: columns * rows, 0])
    images = images[: len(images) // columns * columns]
    height, width = images.shape[1:]
    sheet = images.unflatten(0, (-1, columns)).transpose(1, 2).reshape(-1, height, columns * width).flatten(0, 1)
    buffer = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def strip_png(grids: Sequence[Path], height: int = 28) -> bytes:
    """The first row of each of a run's grids under one another, as one PNG: how the same noise came out over time."""
    rows = []
    for path in grids:
        with Image.open(path) as grid:
            rows.append(torch.from_numpy(np.asarray(grid)[:height].copy()))
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(rows).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
