"""Games against a generator that is given, so that what the opponent should learn is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.families.gan import GAN, GANConfig
from models.families.wgan_gp import WGANGP, WGANGPConfig

Generator = Callable[[Tensor], Tensor]
"""z [B, latent] ~ N(0, I) -> generated points [B, D]."""


class FixedGeneratorGAN(GAN):
    """The lecture's D against a given G. Only D moves, and D is what comes of it."""

    training_only = ()  # type: ignore[assignment]

    def __init__(
        self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0, *, given: Generator
    ) -> None:
        super().__init__(config, data_shape, classes)
        del self.generator
        self.given = given

    def update_order(self) -> tuple[str, ...]:
        return ("discriminator",)

    def generate(self, z: Tensor) -> Tensor:
        return self.given(z)


class FixedGeneratorWGANGP(WGANGP):
    """The production critic and its penalty against a given G. Only the critic moves, and is what comes of it."""

    training_only = ()  # type: ignore[assignment]

    def __init__(
        self, config: WGANGPConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0, *, given: Generator
    ) -> None:
        super().__init__(config, data_shape, classes)
        del self.generator
        self.given = given

    def update_order(self) -> tuple[str, ...]:
        return ("critic",)

    def generate_batch(self, label: Tensor) -> Tensor:
        return self.given(torch.randn(len(label), self.config.latent))
