"""What an auto-encoder's codes are drawn from: N(0, I), or a mixture fitted to the codes of data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import mixture, noise
from models.mixture import Mixture

PRIORS = ("fitted", "standard")
"""As samplers of a family: the first link's one coefficient is 1 for a fitted prior, 0 for the standard one."""
COMPONENTS = 40
POINTS, BLOCK = 20_000, 500


class Prior(nn.Module):
    """A density on codes of `size` numbers."""

    def __init__(self, size: int, components: int = COMPONENTS) -> None:
        super().__init__()
        self.mixture = Mixture(components, size)

    def fit(self, codes: Tensor) -> None:
        """Fit the mixture to codes [N, size]."""
        self.mixture.load_fit(mixture.fit(codes.cpu(), len(self.mixture.weights), iterations=30))

    def draw(self, seed: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
        """Codes [B, size], each from the prior that its link [B, 1] asks for."""
        eps = noise.initial(seed, index, (self.mixture.means.shape[1],))
        return torch.where(coefficients > 0, self.mixture.draw(noise.uniform(seed, index), eps), eps)


def codes(encode: Callable[[Tensor], Tensor], x: Tensor, count: int = POINTS) -> tuple[Tensor, Tensor]:
    """Codes [M, size] of at most `count` of x [N, *data_shape], chosen at random, and which they are [M] int64."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].to(x.device)
    with torch.no_grad():
        return torch.cat([encode(part) for part in x[order].split(BLOCK)]), order


def schedule(steps: int, prior: str | None) -> Tensor:
    """The one line [steps, 1] of a plan that draws from `prior`."""
    return torch.full((steps, 1), float((prior or PRIORS[0]) == "fitted"))
