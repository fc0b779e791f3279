"""Distances and overlap of two sets of features, x real [N, D] and y generated [M, D]. Pure functions.

The Frechet and kernel distances are torchmetrics', in float64 because they subtract large numbers. Distances between
points are computed in the features' own type.
"""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 1000
"""Rows per block of a distance matrix."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) (Frechet 1957; as a score: Heusel et al. 2017)."""
    # Imported here and below because the import takes seconds that other commands need not spend.
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Identity(x.shape[1]))
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    # Rounding may give a small negative number instead of 0.
    return max(0.0, float(metric.compute()))


class Inception:
    """The 2048 features of the Inception network whose Frechet distance is the literature's FID (Heusel et al. 2017).

    The network is torch-fidelity's, and `weights` the file `weights-inception-2015-12-05-6726825d.pth`. Raises
    RuntimeError if the file holds other tensors, ImportError without torch-fidelity. Costs 11 GFLOP per image.
    """

    def __init__(self, weights: Path) -> None:
        import torch_fidelity  # noqa: F401  without it, torchmetrics' error names another package
        from torchmetrics.image.fid import NoTrainInceptionV3

        # torch-fidelity unpickles any object, so first make sure that the file holds only tensors.
        torch.load(weights, weights_only=True)
        self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features [N, 2048] of images [N, C, H, W] uint8, C 1 or 3."""
        return torch.cat([self.net(part.expand(-1, 3, -1, -1)) for part in images.split(50)])


def kernel_distance(x: Tensor, y: Tensor, block: int = BLOCK) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, mean of 100 subsets (KID: Binkowski et al. 2018)."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        torch.manual_seed(0)
        metric = KernelInceptionDistance(feature=_Identity(x.shape[1]), subset_size=min(block, len(x), len(y)))
        metric.update(x.double(), real=True)
        metric.update(y.double(), real=False)
        return float(metric.compute()[0])


@dataclass(frozen=True)
class Coverage:
    """Overlap of two sets. The ball of a point reaches to its k-th neighbour in its own set."""

    precision: float
    """Share of y inside a ball of x (Kynkaanniemi et al. 2019)."""
    recall: float
    """Share of x inside a ball of y (the same paper)."""
    density: float
    """Mean number of balls of x around a point of y, divided by k (Naeem et al. 2020)."""
    coverage: float
    """Share of x whose ball contains a point of y (the same paper)."""


def coverage(x: Tensor, y: Tensor, k: int = 5) -> Coverage:
    """Precision, recall, density and coverage of x [N, D] and y [M, D] with k neighbours."""
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside, covered = torch.zeros(len(y)), torch.zeros(len(x), dtype=torch.bool)
    recalled: list[Tensor] = []
    for rows, radius in zip(x.split(BLOCK), radius_x.split(BLOCK), strict=True):
        distance = torch.cdist(rows, y)
        within = distance <= radius[:, None]
        inside += within.sum(0)
        covered[len(recalled) * BLOCK : len(recalled) * BLOCK + len(rows)] = within.any(1)
        recalled.append((distance <= radius_y).any(1))
    return Coverage(
        precision=float((inside > 0).float().mean()),
        recall=float(torch.cat(recalled).float().mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.float().mean()),
    )


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from each row of y [M, D] to the nearest row of x [N, D], and the number of that row: [M] each."""
    parts = [torch.cdist(rows, x).min(1) for rows in y.split(BLOCK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def chance_of_copies(tests: int) -> float:
    """The share of draws that may be as near to a training image as the nearest 1 % of `tests` test images are.

    If draws and test images come from one distribution, this share is Beta(k, tests + 1 - k), k the number of test
    images in the 1 %. It exceeds the result once in a thousand times.
    """
    from scipy.stats import beta

    k = nearest_percent(tests)
    return float(beta.ppf(0.999, k, tests + 1 - k))


def nearest_percent(tests: int) -> int:
    """One percent of `tests` images, at least one."""
    return max(1, tests // 100)


def sharpness(images: Tensor) -> float:
    """Mean variance of the Laplacian of images [N, C, H, W] uint8: small if they are blurred, large if noisy."""
    x = images.flatten(0, 1).unsqueeze(1).float()
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return float(torch.cat([F.conv2d(part, kernel).flatten(1).var(1) for part in x.split(BLOCK)]).mean())


def entropy(labels: Tensor, classes: int) -> float:
    """Entropy of the labels' histogram in nats; log(classes) if all are equally frequent."""
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    return float(-torch.special.xlogy(share, share).sum())


def duplicates(images: Tensor) -> float:
    """Share of images [N, ...] uint8 that equal an earlier one in every byte."""
    return 1 - len(torch.unique(images.flatten(1), dim=0)) / len(images)


def interval(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean, by Student's t; nan for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    spread = torch.tensor(values, dtype=torch.float64).std()
    return float(t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values)))


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance from each row to its k-th nearest other row: [N]."""
    # k + 1, because the nearest row is the row itself.
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1).values for rows in x.split(BLOCK)])


class _Identity(nn.Module):
    """Stands for the network that torchmetrics expects: the features themselves, of size `num_features`."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
