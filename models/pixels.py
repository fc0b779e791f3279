"""Conversion between pixel bytes and the numbers that models use."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]. Floating-point images are returned as they are."""
    return images if images.is_floating_point() else images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float32 in [-1, 1] -> uint8 0..255, rounded to the nearest; the inverse of `to_unit`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Arrange images [n, H, W] row by row in one image, by default nearly square; unused cells stay black."""
    n, height, width = images.shape
    if n == 1:
        return images.reshape(height, width)
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
