"""What every auto-encoder shares: an encoder, a decoder, and a prior that codes are sampled from."""

from typing import Any

from torch import Tensor

from models import prior
from models.base import Family, Rows
from models.nets import decoder, encoder
from models.prior import PRIORS, Prior


class Autoencoder(Family):
    """Convolutional encoder f and decoder g. The state of the only step is the code z [B, latent].

    `config` has `latent`, `width` and `levels`. The sampler names the prior: a mixture fitted to the data's codes, or
    N(0, I).
    """

    samplers = PRIORS
    sampler_parameter = "prior"
    encodes = True

    def __init__(
        self, config: Any, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0, *, outputs: int | None = None
    ) -> None:
        super().__init__(config, data_shape, classes)
        self.encoder = encoder(
            self.data_shape, config.latent if outputs is None else outputs, config.width, config.levels
        )
        self.decoder = decoder(self.data_shape, config.latent, config.width, config.levels)
        self.prior = Prior(config.latent)

    def fit(self, x: Tensor, label: Tensor) -> None:
        self.prior.fit(prior.codes(self.encoder, x)[0])

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        return prior.schedule(steps, sampler)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return self.prior.sample(seed, index, coefficients)

    def step(self, rows: Rows) -> Tensor:
        return self.decoder(rows.state).tanh()

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """f(x): [B, *data_shape] -> [B, latent]."""
        return self.encoder(x)
