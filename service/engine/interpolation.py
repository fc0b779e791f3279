"""Interpolation between states."""

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation from a to b by `weight` in [0, 1]; the norm changes linearly."""
    norm_a, norm_b = a.norm(), b.norm()
    cosine = ((a * b).sum() / (norm_a * norm_b).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    # Parallel to the precision of a float32 cosine: the arc is a line.
    if float(angle.sin()) < 1e-3 or min(float(norm_a), float(norm_b)) < 1e-4:
        return torch.lerp(a, b, weight)
    unit = (((1 - weight) * angle).sin() * a / norm_a + (weight * angle).sin() * b / norm_b) / angle.sin()
    return unit * torch.lerp(norm_a, norm_b, weight)
