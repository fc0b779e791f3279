"""Distances and coverage between two clouds of features: x real, y generated, [N, D] and [M, D]. Pure functions.

Moments and kernels, which subtract large numbers, run in float64; distances between points in the clouds' own type.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1000
"""Rows that are held against a whole cloud at a time."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Frechet 1957; as a score: Heusel et al. 2017)."""
    x, y = x.double(), y.double()
    covariances = torch.cov(x.T), torch.cov(y.T)
    # The trace of the root of a product is the sum of the roots of its eigenvalues, those of a symmetric matrix here.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return float(mean + covariances[0].trace() + covariances[1].trace() - 2 * product)


def kernel_distance(x: Tensor, y: Tensor, block: int = BLOCK) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, averaged over blocks (KID: Binkowski et al. 2018)."""
    block = min(block, len(x), len(y))
    count = min(len(x), len(y)) // block * block
    # Blocks must be drawn at random: a test split that is sorted by its writers would differ from itself.
    generator = torch.Generator().manual_seed(0)
    x, y = (cloud.double()[torch.randperm(len(cloud), generator=generator)[:count]] for cloud in (x, y))
    pairs = zip(x.split(block), y.split(block), strict=True)
    return float(torch.stack([_squared_mmd(a, b) for a, b in pairs]).mean())


@dataclass(frozen=True)
class Coverage:
    """How two clouds overlap, by balls that reach to each point's k-th neighbour in its own cloud."""

    precision: float
    """Share of y in the balls of x (Kynkaanniemi et al. 2019)."""
    recall: float
    """Share of x in the balls of y (likewise)."""
    density: float
    """Mean number of x's balls that a y lies in, over k (Naeem et al. 2020)."""
    coverage: float
    """Share of x whose own ball has a y in it (likewise)."""


def coverage(x: Tensor, y: Tensor, k: int = 5) -> Coverage:
    """Precision, recall, density and coverage with k neighbours."""
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside, covered = torch.zeros(len(y)), torch.zeros(len(x), dtype=torch.bool)
    near: list[Tensor] = []
    for rows, radius in zip(x.split(BLOCK), radius_x.split(BLOCK), strict=True):
        distance = torch.cdist(rows, y)
        within = distance <= radius[:, None]
        inside += within.sum(0)
        covered[len(near) * BLOCK : len(near) * BLOCK + len(rows)] = within.any(1)
        near.append((distance <= radius_y).any(1))
    return Coverage(
        precision=float((inside > 0).float().mean()),
        recall=float(torch.cat(near).float().mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.float().mean()),
    )


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Distance of each row of y [M, D] to the nearest of x [N, D]: [M]."""
    return torch.cat([torch.cdist(rows, x).amin(1) for rows in y.split(BLOCK)])


def entropy(labels: Tensor, classes: int) -> float:
    """Entropy of the labels' histogram in nats; log(classes) where all are equally many."""
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    return float(-torch.special.xlogy(share, share).sum())


def duplicates(images: Tensor) -> float:
    """Share of images [N, ...] uint8 that are equal to an earlier one, byte for byte."""
    return 1 - len(torch.unique(images.flatten(1), dim=0)) / len(images)


def interval(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean, by Student's t; nan of a single value."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    spread = torch.tensor(values, dtype=torch.float64).std()
    return float(t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values)))


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    m, n = len(x), len(y)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    return (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1)) - 2 * xy.mean()


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other one: [N]."""
    # The nearest of all is the row itself.
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1).values for rows in x.split(BLOCK)])
