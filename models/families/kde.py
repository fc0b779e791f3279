"""Kernel density estimation: a small Gaussian around every training point.

    p(x) = 1/N sum_i N(x; x_i, h^2 I)                                   (Rosenblatt 1956; Parzen 1962)

The bandwidth h maximises the likelihood of held-out points. Images are first reduced to principal components, because
in 784 dimensions all points are far from each other. Samples have less noise than the estimate: in sixty components at
once the full noise appears as grey around the strokes.

    x = x_i + s h eps,   i uniform in 1..N,   eps ~ N(0, I),   s < 1
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise
from models.base import CLOSED_FORM, About, Family, Rows
from models.linear import projection

BLOCK_SIZE = 1000
"""Points whose distances to all kernels are computed at once."""


@dataclass(frozen=True)
class KDEConfig:
    points: int = field(default=20_000, metadata={"help": "training points, each the centre of a kernel"})
    code: int = field(default=64, metadata={"help": "principal components; 0, or no fewer than the data has: no PCA"})
    held_out: int = field(default=2_000, metadata={"help": "points that determine the bandwidth"})
    spread: float = field(
        default=0.5, metadata={"help": "s, the scale of the bandwidth for sampling; at 1 samples follow p"}
    )


class KDE(Family):
    """The state of the only step is a point in the density's space."""

    Config = KDEConfig
    about = About(
        title="Kernel density estimate",
        formula="p(x) = 1/N sum_i N(x; x_i, h^2 I);  h = argmax log-likelihood of held-out points;  "
        "samples: x_i + s h eps, eps ~ N(0, I)",
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
        """Store random rows of x as kernel centres, and choose the bandwidth by other rows."""
        self.components.fit(x.flatten(1))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
        held_out = min(self.config.held_out, len(x) // 5)
        codes = self.encode(x, label)
        centres = codes[order[held_out : held_out + self.config.points]]
        self.points.zero_()
        self.points[: len(centres)].copy_(centres)
        self.count.fill_(len(centres))
        self.bandwidth.fill_(self.best_bandwidth(codes[order[:held_out]].double(), centres.double()))

    def best_bandwidth(self, held_out: Tensor, centres: Tensor) -> float:
        """The bandwidth that maximises the likelihood of held_out [M, D], by golden-section search on its logarithm."""
        distances = torch.cdist(held_out, centres).square()
        spread = float(centres.std(0).mean())
        low, high = math.log(1e-3 * spread), math.log(2 * spread)
        ratio = (math.sqrt(5) - 1) / 2
        while high - low > 1e-3:
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            score_a, score_b = (float(_log_density(distances, math.exp(h), centres.shape[1]).mean()) for h in (a, b))
            low, high = (low, b) if score_a > score_b else (a, high)
        return math.exp((low + high) / 2)

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) in nats for z [N, D] in the density's space: [N] float64."""
        points, bandwidth = self.points[: int(self.count)].double(), float(self.bandwidth)
        parts = [torch.cdist(part.double(), points).square() for part in z.split(BLOCK_SIZE)]
        return torch.cat([_log_density(part, bandwidth, z.shape[1]) for part in parts])

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        return self.log_density(self.encode(x, label))

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        choice = noise.uniform(seed, index)  # may be on the CPU
        chosen = (choice * self.count.to(choice.device)).long().to(seed.device)
        eps = noise.initial(seed, index, (self.points.shape[1],))
        return self.points[chosen] + self.config.spread * self.bandwidth * eps

    def step(self, rows: Rows) -> Tensor:
        return self.components.decode(rows.state).unflatten(1, self.data_shape)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """[B, *data_shape] -> [B, D]: the point in the density's space."""
        return self.components.encode(x.flatten(1))


def _log_density(squared: Tensor, bandwidth: float, size: int) -> Tensor:
    """log p [N] in `size` dimensions from squared distances [N, points]."""
    kernels = -squared / (2 * bandwidth**2)
    return kernels.logsumexp(1) - math.log(squared.shape[1]) - size / 2 * math.log(2 * math.pi * bandwidth**2)
