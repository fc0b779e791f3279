"""The prior that an auto-encoder's codes are sampled from: N(0, I), or a mixture fitted to the data's codes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import mixture, noise
from models.mixture import Mixture

PRIORS = ("fitted", "standard")
"""Sampler names of a family. The schedule's only coefficient is 1 for the fitted prior and 0 for the standard one."""
COMPONENTS = 40
MAX_POINTS, BLOCK_SIZE = 20_000, 500


class Prior(nn.Module):
    """Both priors for codes of size `size`."""

    def __init__(self, size: int, components: int = COMPONENTS) -> None:
        super().__init__()
        self.mixture = Mixture(components, size)

    def fit(self, codes: Tensor) -> None:
        """Fit the mixture to codes [N, size]."""
        self.mixture.load_fit(mixture.fit(codes.cpu(), len(self.mixture.weights), iterations=30))

    def sample(self, seed: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
        """Codes [B, size], each from the prior that its row of coefficients [B, 1] selects."""
        eps = noise.initial(seed, index, (self.mixture.means.shape[1],))
        return torch.where(coefficients > 0, self.mixture.sample(noise.uniform(seed, index), eps), eps)


def codes(encode: Callable[[Tensor], Tensor], x: Tensor, count: int = MAX_POINTS) -> tuple[Tensor, Tensor]:
    """Codes [M, size] of at most `count` random rows of x [N, *data_shape], and the indices [M] int64 of those rows."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].to(x.device)
    with torch.no_grad():
        return torch.cat([encode(part) for part in x[order].split(BLOCK_SIZE)]), order


def schedule(steps: int, prior: str | None) -> Tensor:
    """The schedule [steps, 1] that samples codes from `prior`."""
    return torch.full((steps, 1), float((prior or PRIORS[0]) == "fitted"))
