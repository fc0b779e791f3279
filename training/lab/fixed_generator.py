"""GANs with a fixed generator, for which the optimal discriminator or critic is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.families.gan import GAN, GANConfig
from models.families.wgan_gp import WGANGP, WGANGPConfig

Generator = Callable[[Tensor], Tensor]
"""z [B, latent] ~ N(0, I) -> generated points [B, D]."""


class FixedGeneratorGAN(GAN):
    """The lecture's D against a fixed G. Only D is trained."""

    training_only = ()  # type: ignore[assignment]

    def __init__(
        self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0, *, fixed_generator: Generator
    ) -> None:
        super().__init__(config, data_shape, classes)
        del self.generator
        self.fixed_generator = fixed_generator

    def update_order(self) -> tuple[str, ...]:
        return ("discriminator",)

    def generate(self, z: Tensor) -> Tensor:
        return self.fixed_generator(z)


class FixedGeneratorWGANGP(WGANGP):
    """The production critic with its penalty against a fixed G. Only the critic is trained."""

    training_only = ()  # type: ignore[assignment]

    def __init__(
        self, config: WGANGPConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0, *, fixed_generator: Generator
    ) -> None:
        super().__init__(config, data_shape, classes)
        del self.generator
        self.fixed_generator = fixed_generator

    def update_order(self) -> tuple[str, ...]:
        return ("critic",)

    def generate_batch(self, label: Tensor) -> Tensor:
        return self.fixed_generator(torch.randn(len(label), self.config.latent))
