"""Between bytes and the numbers that models see."""

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]. Numbers with a point are taken to be there already."""
    return images if images.is_floating_point() else images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float32 in [-1, 1] -> uint8 0..255, to the nearest; the inverse of `to_unit`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
