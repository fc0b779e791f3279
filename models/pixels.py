"""Conversions between image bytes and the floats that models use, and image grids."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]. Floating-point input is returned unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float32 in [-1, 1] -> uint8 0..255, rounded to nearest; the inverse of `to_unit`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Images [n, H, W] as one image, row by row.

    Without `columns` the grid is as close to a square as n allows. Unused cells of the last row are black.
    """
    n, height, width = images.shape
    if n == 1:
        return images.reshape(height, width)
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[:n] = images
    return cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
