"""Kernel density estimation: a small Gaussian around every training point.

    p(x) = 1/N sum_i N(x; x_i, h^2 I)                                   (Rosenblatt 1956; Parzen 1962)

The bandwidth h is the one under which points that were held out are likeliest. Images are taken to principal components
first, for in 784 dimensions every point is far from every other. What is drawn has less noise than the estimate says:
in forty components at once it shows as grey around the strokes.

    x = x_i + s h eps,   i even in 1..N,   eps ~ N(0, I),   s < 1
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise
from models.base import CLOSED_FORM, About, Family, Rows
from models.linear import projection

BLOCK = 1000
"""Points that are held against all kernels at a time."""


@dataclass(frozen=True)
class KDEConfig:
    points: int = field(default=16_000, metadata={"help": "training points kept, one kernel each"})
    code: int = field(default=40, metadata={"help": "principal components kept; 0 or more than there are: no PCA"})
    held_out: int = field(default=2_000, metadata={"help": "points that the bandwidth is chosen by"})
    spread: float = field(
        default=0.7, metadata={"help": "s, the scale of the bandwidth when drawing; at 1 draws follow p"}
    )


class KDE(Family):
    """The state of its one link is a point of the density's own space."""

    Config = KDEConfig
    about = About(
        title="Kernel density estimate",
        formula="p(x) = 1/N sum_i N(x; x_i, h^2 I);  h = argmax log-likelihood of held-out points;  "
        "draws: x_i + s h eps, eps ~ N(0, I)",
        paper="Parzen, On estimation of a probability density function and mode, 1962",
    )
    recipe = CLOSED_FORM
    encodes = True
    likelihood = "codes"
    config: KDEConfig

    def __init__(self, config: KDEConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.components, size = projection(math.prod(data_shape), config.code)
        self.points: Tensor
        self.bandwidth: Tensor
        self.count: Tensor
        self.register_buffer("points", torch.zeros(config.points, size))
        self.register_buffer("bandwidth", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def fit(self, x: Tensor, label: Tensor) -> None:
        """Keep `points` of x at random, and choose the bandwidth by others."""
        self.components.fit(x.flatten(1))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
        held = min(self.config.held_out, len(x) // 5)
        codes = self.encode(x, label)
        kept = codes[order[held : held + self.config.points]]
        self.points.zero_()
        self.points[: len(kept)].copy_(kept)
        self.count.fill_(len(kept))
        self.bandwidth.fill_(self.best_bandwidth(codes[order[:held]].double(), kept.double()))

    def best_bandwidth(self, held_out: Tensor, kept: Tensor) -> float:
        """The bandwidth under which `held_out` [M, D] is likeliest, by golden section over its logarithm."""
        distances = torch.cdist(held_out, kept).square()
        spread = float(kept.std(0).mean())
        low, high = math.log(1e-3 * spread), math.log(2 * spread)
        ratio = (math.sqrt(5) - 1) / 2
        while high - low > 1e-3:
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            score_a, score_b = (float(_log_density(distances, math.exp(at), kept.shape[1]).mean()) for at in (a, b))
            low, high = (low, b) if score_a > score_b else (a, high)
        return math.exp((low + high) / 2)

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) in nats for z [N, D] in the density's own space: [N] float64."""
        points, bandwidth = self.points[: int(self.count)].double(), float(self.bandwidth)
        parts = [torch.cdist(part.double(), points).square() for part in z.split(BLOCK)]
        return torch.cat([_log_density(part, bandwidth, z.shape[1]) for part in parts])

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        return self.log_density(self.encode(x, label))

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        chosen = (noise.uniform(seed, index) * self.count).long()
        eps = noise.initial(seed, index, (self.points.shape[1],))
        return self.points[chosen] + self.config.spread * self.bandwidth * eps

    def step(self, rows: Rows) -> Tensor:
        return self.components.decode(rows.state).unflatten(1, self.data_shape)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """[B, *data_shape] -> [B, D]: the point itself, in the density's own space."""
        return self.components.encode(x.flatten(1))


def _log_density(squared: Tensor, bandwidth: float, size: int) -> Tensor:
    """log p [N] in `size` dimensions from squared distances [N, points]."""
    kernels = -squared / (2 * bandwidth**2)
    return kernels.logsumexp(1) - math.log(squared.shape[1]) - size / 2 * math.log(2 * math.pi * bandwidth**2)
