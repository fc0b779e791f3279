"""Sample grids and sample quality during a run, always from the same noise."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.base import Family, sample
from models.losses import sliced_wasserstein
from models.pixels import image_grid, to_pixels, to_unit
from training.data import Dataset

COUNT = 512
COLUMNS, ROWS = 10, 10
"""Of a grid."""
BATCH = 64
"""Samples at once on a CPU. A GPU takes all at once: small batches would leave it idle."""


@torch.inference_mode()
def fixed_samples(family: Family, device: torch.device, count: int = COUNT, **options: Any) -> Tensor:
    """Data [count, *data_shape] of seed 0, with labels that cycle through the classes.

    `options` go to `models.base.sample`: `steps`, `sampler`, `guidance`; by default the family's steps and no guidance.
    """
    options = {"steps": family.steps.default, **options}
    parts = []
    at_once = count if device.type == "cuda" else BATCH
    for first in range(0, count, at_once):
        index = torch.arange(first, min(first + at_once, count), device=device)
        label = family.one_hot(index % max(family.classes, 1))
        parts.append(sample(family, torch.zeros_like(index), index, label, **options))
    return torch.cat(parts).cpu()


def distance(samples: Tensor, data: Dataset, projections: int = 256) -> float:
    """Sliced 2-Wasserstein distance from samples [N, *data_shape] to the first N of the data, on fixed directions.

    It needs no other model, works for data of any shape and detects mode collapse. It selects the best checkpoint; as a
    measure of quality it is too coarse (Bonneel et al. 2015).
    """
    count = min(len(samples), len(data.images))
    x, y = samples[:count].flatten(1), to_unit(data.images[:count]).flatten(1)
    directions = torch.randn(x.shape[1], projections, generator=torch.Generator().manual_seed(0))
    return float(sliced_wasserstein(x, y, F.normalize(directions, dim=0)).sqrt())


def grid_png(samples: Tensor, columns: int = COLUMNS, rows: int = ROWS) -> bytes:
    """The first columns * rows of samples [N, C, H, W] in [-1, 1] as one PNG, row by row."""
    return _png(image_grid(to_pixels(samples[: columns * rows]).numpy(), columns))


def strip_png(grids: Sequence[Path]) -> bytes:
    """The first row of each of a run's grids, one below the other, as one PNG: the same noise at each validation."""
    rows = []
    for path in grids:
        with Image.open(path) as grid:
            rows.append(np.asarray(grid)[: grid.height // ROWS])
    return _png(np.concatenate(rows))


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
