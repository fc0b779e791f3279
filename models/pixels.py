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


def to_pixels(x: Tensor) -> Tensor:
    """float32 [B, C, H, W] in [-1, 1] -> uint8 [B, H, W] of one channel, or [B, H, W, C] of several."""
    return to_uint8(x[:, 0] if x.shape[1] == 1 else x.movedim(1, -1))


def channels_first(images: Tensor) -> Tensor:
    """[B, H, W] or [B, H, W, C] -> [B, C, H, W]: the layout of models for that of pictures."""
    return images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)


def image_grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Arrange images [n, H, W] or [n, H, W, C] row by row in one, by default nearly square; unused cells are black."""
    n, height, width, *channels = images.shape
    if n == 1:
        return images[0]
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    sheet[:n] = images
    cells = sheet.reshape(rows, columns, height, width, *channels)
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, *channels)
