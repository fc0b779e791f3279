"""Principal components: the linear code with the smallest squared error."""

import torch
from torch import Tensor, nn

from models.batch_invariant import linear

MAX_EXACT_SIZE = 1024
"""Numbers per point up to which the covariance matrix is computed: its eigenvectors cost the cube of this."""
MAX_POINTS, OVERSAMPLING = 5000, 10
"""Of the approximation: rows that it looks at, and directions beyond those asked for, which make it accurate."""


class PrincipalComponents(nn.Module):
    """z = W'(x - mean), x^ = W z + mean with W'W = I, for data and codes of sizes `size` and `code` (Pearson 1901)."""

    def __init__(self, size: int, code: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.W: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("W", torch.zeros(size, code))
        self.register_buffer("variance", torch.zeros(code))

    def fit(self, x: Tensor) -> None:
        """Estimate mean, directions and variances from x [N, size].

        The largest entry of each direction is positive. N points vary in at most N - 1 directions; any others are 0.
        """
        mean, variances, vectors = (_exact if x.shape[1] <= MAX_EXACT_SIZE else _approximate)(x, self.W.shape[1])
        W = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.mean.copy_(mean)
        for buffer, values in ((self.W, W), (self.variance, variances.clamp(min=0))):
            buffer.zero_()
            buffer[..., : values.shape[-1]].copy_(values)

    def encode(self, x: Tensor) -> Tensor:
        """[B, size] -> [B, code]."""
        return linear(x - self.mean, self.W.T)

    def decode(self, z: Tensor) -> Tensor:
        """[B, code] -> [B, size]."""
        return linear(z, self.W) + self.mean


def _exact(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [size], the `count` largest variances and their directions [size, count] of x [N, size], in float64."""
    data = x.double()
    mean = data.mean(0)
    centred = data - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / max(len(x) - 1, 1))
    return mean, variances.flip(0)[:count], vectors.flip(1)[:, :count]


def _approximate(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same from MAX_POINTS rows of x at most, by random projections (Halko et al. 2011), in float32.

    Its cost grows with `size`, not with its cube.
    """
    points = x[:: -(-len(x) // MAX_POINTS)].cpu()
    mean = points.mean(0)
    centred = points - mean
    rank = min(count, len(points) - 1) or 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, vectors = torch.svd_lowrank(centred, q=min(rank + OVERSAMPLING, *centred.shape), niter=4)
    return mean, singular[:rank].square() / max(len(points) - 1, 1), vectors[:, :rank]


class Identity(nn.Module):
    """A code equal to the data."""

    def fit(self, x: Tensor) -> None:
        """Nothing to estimate."""

    def encode(self, x: Tensor) -> Tensor:
        """[B, size] -> the same."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """[B, size] -> the same."""
        return z


def projection(size: int, code: int) -> tuple[PrincipalComponents | Identity, int]:
    """`PrincipalComponents` for 0 < code < size, otherwise `Identity`; with the size of its codes."""
    return (PrincipalComponents(size, code), code) if 0 < code < size else (Identity(), size)
