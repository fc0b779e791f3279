"""Clusters of images that have no labels, by k-means.

    min_mu  E min_k |phi(x) - mu_k|^2                                                       (Lloyd 1982, equation 3)

phi is the image at a lower resolution: the clusters differ in what is visible from afar.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 14
"""Images are averaged over squares to about this side."""
FITTED = 20_000
"""The most images that the centres are computed from."""
ITERATIONS = 40


class Clusters(nn.Module):
    """`count` clusters of data of `data_shape`, each around its centre."""

    centres: Tensor

    def __init__(self, count: int, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(count, features(torch.zeros(1, *data_shape)).shape[1]))

    def fit(self, x: Tensor) -> Tensor:
        """Compute the centres from x [N, *data_shape]. Returns the share of x in each cluster, [count].

        The first centres are images far from each other (Arthur & Vassilvitskii 2007). A pure function of x. Raises
        ValueError if x has fewer rows than there are clusters.
        """
        count = len(self.centres)
        if len(x) < count:
            raise ValueError(f"{len(x)} images cannot have {count} clusters; set --groups to at most {len(x)}")
        generator = torch.Generator().manual_seed(0)
        points = features(x[torch.randperm(len(x), generator=generator)[:FITTED].to(x.device)])
        self.centres.copy_(_far_points(points, count, generator))
        for _ in range(ITERATIONS):
            members = F.one_hot(_nearest(points, self.centres), count).to(points)
            sizes = members.sum(0)[:, None]
            self.centres.copy_(torch.where(sizes > 0, members.t() @ points / sizes.clamp(min=1), self.centres))
        return torch.bincount(self.assign(x), minlength=count) / len(x)

    def assign(self, x: Tensor) -> Tensor:
        """The cluster whose centre is nearest, for x [B, *data_shape]: [B] int64."""
        return _nearest(features(x), self.centres)


def features(x: Tensor) -> Tensor:
    """phi(x), [B, features], of x [B, *data_shape]; points are their own."""
    if x.dim() == 4 and (side := min(x.shape[2:]) // SIDE) > 1:
        x = F.avg_pool2d(x, side)
    return x.flatten(1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).argmin(1)


def _far_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the points [N, D]: each at random, with a probability like its squared distance to those before it."""
    chosen = points[:1]
    squared = (points - chosen).square().sum(1)
    for _ in range(count - 1):
        # Copies of chosen points have distance 0; where only these are left, any point will do.
        weights = squared if bool(squared.sum() > 0) else torch.ones_like(squared)
        new = points[torch.multinomial(weights.cpu(), 1, generator=generator).to(points.device)]
        chosen = torch.cat((chosen, new))
        squared = torch.minimum(squared, (points - new).square().sum(1))
    return chosen
