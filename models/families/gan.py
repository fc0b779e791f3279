"""The generative adversarial network of the lecture's code demo: two small fully connected nets.

G turns z ~ N(0, I) into data, D distinguishes real from generated data, and they play

    min_G max_D  E_x log D(x) + E_z log(1 - D(G(z)))        (Goodfellow et al. 2014, equation 1, Algorithm 1)

When D is confident the generator's term is flat, so `non_saturating`, the default, maximises E_z log D(G(z)) instead.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import noise, parallel
from models.base import About, Family, Recipe, Rows, Terms
from models.nets import MLP


@dataclass(frozen=True)
class GANConfig:
    latent: int = field(default=100, metadata={"help": "dimensions of z"})
    loss: Literal["non_saturating", "minimax"] = field(
        default="non_saturating",
        metadata={"help": "G's objective: -log D(G(z)), or log(1 - D(G(z))) as in Algorithm 1"},
    )
    discriminator_steps: int = field(default=1, metadata={"help": "D's optimizer steps per step of G: Algorithm 1's k"})


class GAN(Family):
    """G 100-128-256-784 with tanh, D 784-256-128-1, binary cross entropy."""

    Config = GANConfig
    about = About(
        title="Generative adversarial network",
        formula="min_G max_D  E_x[log D(x)] + E_z[log(1 - D(G(z)))],  z ~ N(0, I)",
        paper="Goodfellow et al., Generative Adversarial Networks, arXiv 1406.2661",
    )
    recipe = Recipe(epochs=200, batch=128, lr=2e-4, betas=(0.5, 0.999))
    players = ("discriminator", "generator")
    training_only = ("discriminator",)
    config: GANConfig

    def __init__(self, config: GANConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        size = math.prod(data_shape)
        self.generator = MLP(config.latent, 128, 256, size)
        self.discriminator: nn.Module = MLP(size, 256, 128, 1)

    def update_order(self) -> tuple[str, ...]:
        return ("discriminator",) * self.config.discriminator_steps + ("generator",)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        generated = self.generate(parallel.randn(len(x), self.config.latent, device=x.device))
        if player == "generator":
            logits = self.discriminator(generated.flatten(1))
            real = torch.ones_like(logits)
            if self.config.loss == "minimax":
                return {"loss": -F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))}
            return {"loss": F.binary_cross_entropy_with_logits(logits, real)}
        logits_x = self.discriminator(x.flatten(1))
        logits_g = self.discriminator(generated.detach().flatten(1))
        real_term = F.binary_cross_entropy_with_logits(logits_x, torch.ones_like(logits_x))
        generated_term = F.binary_cross_entropy_with_logits(logits_g, torch.zeros_like(logits_g))
        return {
            "loss": real_term + generated_term,
            "D(x)": logits_x.sigmoid().mean(),
            "D(G(z))": logits_g.sigmoid().mean(),
        }

    def generate(self, z: Tensor) -> Tensor:
        """G(z): [B, latent] -> [B, *data_shape] in [-1, 1]."""
        return self.generator(z).tanh().unflatten(1, self.data_shape)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.initial(seed, index, (self.config.latent,))

    def step(self, rows: Rows) -> Tensor:
        return self.generate(rows.state)
