"""Distances between distributions, where they can be had exactly or nearly so."""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """W_1 of two clouds [N, D] of equally many points: the best assignment's mean distance."""
    return _transport(torch.cdist(x.double(), y.double()))


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """W_2 of two clouds [N, D] of equally many points: the root of the best assignment's mean squared distance."""
    return math.sqrt(_transport(torch.cdist(x.double(), y.double()).square()))


def _transport(cost: Tensor) -> float:
    """The least mean cost of pairing rows and columns of cost [N, N]."""
    return float(cost.numpy()[linear_sum_assignment(cost.numpy())].mean())


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """JS(p, q) in nats, 0 to log 2, of two tables of the same shape, each of which is scaled to sum to 1."""
    p, q = (table.double() / table.double().sum() for table in (p, q))
    middle = (p + q) / 2
    parts = [torch.where(side > 0, side * (side / middle).log(), torch.zeros_like(side)).sum() for side in (p, q)]
    return float(sum(parts) / 2)


def histogram(x: Tensor, bins: int, reach: float = 1.0) -> Tensor:
    """How many of x [N, 2] lie in each of bins^2 squares of the plane from -reach to reach: [bins, bins], x_1 first."""
    edges = torch.linspace(-reach, reach, bins + 1)
    return torch.histogramdd(x.clamp(-reach, reach).contiguous(), [edges, edges]).hist


def lattice(bins: int, reach: float = 1.0) -> Tensor:
    """The middles of those squares: [bins * bins, 2], x_1 slowest."""
    middles = (torch.arange(bins) + 0.5) / bins * 2 * reach - reach
    return torch.cartesian_prod(middles, middles)
