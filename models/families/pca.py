"""Principal component analysis: the linear auto-encoder with a Gaussian prior on its codes.

    z = W'(x - mean),   x^ = W z + mean,   W'W = I,   min_W E |x - x^|^2          (Pearson 1901; Bishop 2006, 12.1)

The coordinates of the codes are uncorrelated, so z ~ N(0, diag variance) is the Gaussian that fits them. Its samples
decode to those of a Gaussian on a plane in image space.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor
from torch.distributions import Normal

from models import noise
from models.base import CLOSED_FORM, About, Family, Rows
from models.linear import PrincipalComponents


@dataclass(frozen=True)
class PCAConfig:
    code: int = field(default=64, metadata={"help": "dimensions of the code z"})


class PCA(Family):
    """The state of the only step is the code z."""

    Config = PCAConfig
    about = About(
        title="Principal component analysis",
        formula="min_W  E|x - W z|^2,  z = W'x,  W'W = I;  samples: z ~ N(0, diag(variance))",
        paper="Pearson, On lines and planes of closest fit to systems of points in space, 1901",
    )
    recipe = CLOSED_FORM
    encodes = True
    likelihood = "codes"
    config: PCAConfig

    def __init__(self, config: PCAConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.components = PrincipalComponents(math.prod(data_shape), config.code)

    def fit(self, x: Tensor, label: Tensor) -> None:
        self.components.fit(x.flatten(1))

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        variance = self.components.variance
        varying = variance > 1e-9 * variance.max()  # constant directions have no density
        return Normal(0, variance[varying].sqrt()).log_prob(self.encode(x, label)[:, varying]).sum(1)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        eps = noise.initial(seed, index, (self.config.code,))
        return eps * self.components.variance.sqrt()

    def step(self, rows: Rows) -> Tensor:
        return self.components.decode(rows.state).unflatten(1, self.data_shape)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """[B, *data_shape] -> [B, code]."""
        return self.components.encode(x.flatten(1))
