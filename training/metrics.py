"""Distances and coverage between two clouds of features: x real, y generated, [N, D] and [M, D]. Pure functions.

Frechet's distance and the kernel's are torchmetrics', in float64 for they subtract large numbers; distances between
points run in the clouds' own type.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

BLOCK = 1000
"""Rows that are held against a whole cloud at a time."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Frechet 1957; as a score: Heusel et al. 2017)."""
    # Imported here and below because torchmetrics takes seconds, which every command would wait for.
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(x.shape[1]))
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    # What rounding leaves of nothing may lie below it.
    return max(0.0, float(metric.compute()))


class InceptionDistance:
    """The literature's FID: Frechet's distance in 2048 features of the Inception net of 2015 (Heusel et al. 2017).

    The net is torch-fidelity's, and `weights` the file of its numbers, `weights-inception-2015-12-05-6726825d.pth`.
    Raises RuntimeError where they are others, ImportError without torch-fidelity. A look costs 11 GFLOP an image.
    """

    def __init__(self, weights: Path) -> None:
        import torch_fidelity  # noqa: F401  torchmetrics' own complaint tells of another package
        from torchmetrics.image.fid import FrechetInceptionDistance

        # torch-fidelity unpickles whatever the file holds; nothing but tensors may get there.
        torch.load(weights, weights_only=True)
        self.metric = FrechetInceptionDistance(
            feature=2048, reset_real_features=False, feature_extractor_weights_path=str(weights)
        )

    def hold_against(self, real: Tensor) -> None:
        """Take real [N, 1, H, W] uint8 as the images to be near to."""
        self._look(real, real=True)

    def distance(self, images: Tensor) -> float:
        """That of images [N, 1, H, W] uint8."""
        self.metric.reset()
        self._look(images, real=False)
        return max(0.0, float(self.metric.compute()))

    @torch.inference_mode()
    def _look(self, images: Tensor, real: bool) -> None:
        for part in images.split(50):
            self.metric.update(part.expand(-1, 3, -1, -1), real=real)


def kernel_distance(x: Tensor, y: Tensor, block: int = BLOCK) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, mean of 100 subsets (KID: Binkowski et al. 2018)."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(feature=_Given(x.shape[1]), subset_size=min(block, len(x), len(y)))
        metric.update(x.double(), real=True)
        metric.update(y.double(), real=False)
        return float(metric.compute()[0])


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


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other one: [N]."""
    # The nearest of all is the row itself.
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1).values for rows in x.split(BLOCK)])


class _Given(nn.Module):
    """For metrics that want a net: the features themselves, of `num_features` numbers."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
