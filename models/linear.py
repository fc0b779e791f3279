"""Principal components: the linear code with the smallest squared error."""

import torch
from torch import Tensor, nn

from models.batch_invariant import linear


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
        """Estimate mean, directions and variances from x [N, size] in float64.

        The largest entry of each direction is positive.
        """
        data = x.double()
        mean = data.mean(0)
        centred = data - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / (len(x) - 1))
        W = vectors.flip(1)[:, : self.W.shape[1]]
        W = W * W.gather(0, W.abs().argmax(0, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.W.copy_(W)
        self.variance.copy_(variances.flip(0)[: len(self.variance)].clamp(min=0))

    def encode(self, x: Tensor) -> Tensor:
        """[B, size] -> [B, code]."""
        return linear(x - self.mean, self.W.T)

    def decode(self, z: Tensor) -> Tensor:
        """[B, code] -> [B, size]."""
        return linear(z, self.W) + self.mean


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
