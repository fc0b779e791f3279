"""The Gaussian mixture, fitted by expectation maximisation, with one mixture per digit.

    p(x | y) = sum_k w_k N(x; mu_k, Sigma_k)
    E: r_nk = w_k N(x_n; mu_k, Sigma_k) / p(x_n)          M: w, mu, Sigma of the points, weighted by r
                                                          (Dempster, Laird & Rubin 1977)

Each digit has as many components as its images suffice for. A component has few images, so that its covariance is
averaged with that of all components (`mixture.fit_pooled`). Without that average, the Bayesian information criterion
selects the number of components. Images are first reduced to principal components; data of few dimensions is used as it
is.
"""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import mixture, noise
from models.base import CLOSED_FORM, About, Family, Rows
from models.linear import projection
from models.mixture import LabelledMixture


@dataclass(frozen=True)
class GMMConfig:
    code: int = field(default=64, metadata={"help": "principal components; 0, or no fewer than the data has: no PCA"})
    most: int = field(default=32, metadata={"help": "maximum Gaussians per digit; candidates are 1, 2, 4, ..."})
    points: int = field(default=60_000, metadata={"help": "maximum number of training points"})
    pooled: float = field(
        default=8.0,
        metadata={
            "help": "points' worth of the covariance of all Gaussians in each; 0: none, and BIC selects the number"
        },
    )


class GMM(Family):
    """The state of the only step is a point in the mixture's space. Without classes there is a single mixture."""

    Config = GMMConfig
    about = About(
        title="Gaussian mixture model",
        formula="max  E log sum_k w_k N(x; mu_k, Sigma_k)  by EM, one mixture per digit",
        paper="Dempster, Laird & Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977",
    )
    recipe = CLOSED_FORM
    conditional = True
    encodes = True
    likelihood = "codes"
    config: GMMConfig

    def __init__(self, config: GMMConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.components, size = projection(math.prod(data_shape), config.code)
        self.mixture = LabelledMixture(config.most, size, self.classes)

    def fit(self, x: Tensor, label: Tensor) -> None:
        self.components.fit(x.flatten(1))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: self.config.points].to(x.device)
        pooled = self.config.pooled
        select = functools.partial(mixture.fit_pooled, pooled=pooled) if pooled else mixture.fit_best
        self.mixture.fit(self.encode(x[order], label[order]).cpu(), label[order].cpu(), select)

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        """The log density of the mixture of all digits; the label has no effect."""
        return self.mixture.log_density(self.encode(x, label))

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        eps = noise.initial(seed, index, (self.mixture.means.shape[1],))
        return self.mixture.sample(noise.uniform(seed, index), eps, self.mixture.component_weights(label))

    def step(self, rows: Rows) -> Tensor:
        return self.components.decode(rows.state).unflatten(1, self.data_shape)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """[B, *data_shape] -> [B, D]: the point in the mixture's space."""
        return self.components.encode(x.flatten(1))
