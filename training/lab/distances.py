"""Distances between distributions, exact or nearly so."""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """W_1 of two point sets [N, D] of equal size: the mean distance of the optimal assignment."""
    return _transport(torch.cdist(x.double(), y.double()))


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """W_2 of two point sets [N, D] of equal size: the root mean squared distance of the optimal assignment."""
    return math.sqrt(_transport(torch.cdist(x.double(), y.double()).square()))


def _transport(cost: Tensor) -> float:
    """The minimal mean cost over all assignments of rows to columns of cost [N, N]."""
    return float(cost.numpy()[linear_sum_assignment(cost.numpy())].mean())


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """JS(p, q) in nats, 0 to log 2, of two tables of the same shape, each normalised to sum to 1."""
    p, q = (table.double() / table.double().sum() for table in (p, q))
    middle = (p + q) / 2
    parts = [torch.where(side > 0, side * (side / middle).log(), torch.zeros_like(side)).sum() for side in (p, q)]
    return float(sum(parts) / 2)


def histogram(x: Tensor, bins: int, reach: float = 1.0) -> Tensor:
    """Counts of x [N, 2] in bins^2 squares of the plane from -reach to reach: [bins, bins], x_1 first."""
    edges = torch.linspace(-reach, reach, bins + 1)
    return torch.histogramdd(x.clamp(-reach, reach).contiguous(), [edges, edges]).hist


def lattice(bins: int, reach: float = 1.0) -> Tensor:
    """The centres of the squares of `histogram`: [bins * bins, 2], x_1 slowest."""
    centres = (torch.arange(bins) + 0.5) / bins * 2 * reach - reach
    return torch.cartesian_prod(centres, centres)
