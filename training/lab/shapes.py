"""Distributions in the plane with known densities."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Gaussians:
    """A mixture of isotropic Gaussians with equal weights."""

    centres: Tensor
    """[K, D]."""
    deviation: float

    def sample(self, count: int, seed: int) -> Tensor:
        """Samples [count, D] float32."""
        generator = Generator().manual_seed(seed)
        which = torch.randint(len(self.centres), (count,), generator=generator)
        eps = torch.randn(count, self.centres.shape[1], generator=generator)
        return self.centres[which] + self.deviation * eps

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats of x [N, D]: [N]."""
        squared = (x[:, None] - self.centres).square().sum(2)
        norm = len(self.centres[0]) / 2 * math.log(2 * math.pi * self.deviation**2) + math.log(len(self.centres))
        return (-squared / (2 * self.deviation**2)).logsumexp(1) - norm

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For x [N, D] the index of the nearest centre [N] int64, and its distance in deviations [N]."""
        distance, which = torch.cdist(x, self.centres).min(1)
        return which, distance / self.deviation


def ring(count: int = 8, radius: float = 0.7, deviation: float = 0.007) -> Gaussians:
    """`count` narrow Gaussians on a circle (Lin et al. 2018, arXiv 1712.04086: deviation a hundredth of the radius)."""
    angle = 2 * math.pi * torch.arange(count) / count
    return Gaussians(radius * torch.stack((angle.cos(), angle.sin()), dim=1), deviation)


def grid(side: int = 5, reach: float = 0.7, deviation: float = 0.00875) -> Gaussians:
    """side^2 narrow Gaussians on a square lattice (the same paper: spacing 2, deviation 0.05; scaled to `reach`)."""
    line = torch.linspace(-reach, reach, side)
    return Gaussians(torch.cartesian_prod(line, line), deviation)


def moons(count: int, seed: int, noise: float = 0.03) -> tuple[Tensor, Tensor]:
    """Two interlocking half circles: points [count, 2] float32 in [-1, 1], and their half circle [count] int64."""
    generator = Generator().manual_seed(seed)
    which = torch.randint(2, (count,), generator=generator)
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), dim=1)
    x = torch.where(which[:, None] == 0, upper, -upper)
    return 0.6 * x + noise * torch.randn(count, 2, generator=generator), which
