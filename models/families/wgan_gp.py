"""The Wasserstein GAN with gradient penalty: a critic estimates the distance between real and generated data.

    W1(p, q) = sup_{|f|_L <= 1} E_p f(x) - E_q f(x)                             (Kantorovich & Rubinstein 1958)
    min_G max_C  E C(x) - E C(G(z)) - lambda E(|grad C(x^)| - 1)^2             (Gulrajani et al. 2017, equation 3)

x^ is a random point between a real and a generated image. The Jensen-Shannon divergence of two distributions without
overlap is log 2 at any distance, so its gradient is uninformative; W1 grows with the distance.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import parallel
from models.adversarial import GroupedGAN, GroupsConfig
from models.base import About, Recipe, Terms
from models.losses import leading_share, squared_gradient
from models.nets import discriminator


@dataclass(frozen=True)
class WGANGPConfig(GroupsConfig):
    critic_width: int = field(
        default=32, metadata={"help": "channels of C at half the size, doubled at each lower one"}
    )
    penalty: float = field(default=10.0, metadata={"help": "lambda, the weight of the gradient penalty"})
    penalty_share: float = field(default=0.25, metadata={"help": "share of each batch used for the penalty"})
    critic_steps: int = field(default=5, metadata={"help": "optimizer steps of C per step of G"})


class WGANGP(GroupedGAN):
    """Generates any digit. The critic has no batch norm, because its penalty is defined per image."""

    Config = WGANGPConfig
    about = About(
        title="Wasserstein GAN with gradient penalty",
        formula="min_G max_C  E[C(x)] - E[C(G(z))] - lambda E(|grad C(x^)| - 1)^2,  x^ between x and G(z)",
        paper="Gulrajani et al., Improved Training of Wasserstein GANs, arXiv 1704.00028; "
        "Arjovsky et al., Wasserstein GAN, arXiv 1701.07875",
    )
    recipe = Recipe(epochs=30, batch=64, lr=1e-3, betas=(0.0, 0.9), ema=50_000, cosine=True)
    players = ("critic", "generator")
    training_only = ("critic",)
    revision = 2
    config: WGANGPConfig

    def __init__(self, config: WGANGPConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.critic = discriminator(self.data_shape, 1, config.critic_width, config.levels)

    def update_order(self) -> tuple[str, ...]:
        return ("critic",) * self.config.critic_steps + ("generator",)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        generated = self.generate_batch(self.one_hot(label))
        if player == "generator":
            return {"loss": -self.criticize(generated).mean()}
        generated = generated.detach()
        w1 = self.criticize(x).mean() - self.criticize(generated).mean()
        # A share of the batch gives an unbiased estimate; second derivatives cost more than the rest.
        share = self.config.penalty_share
        penalty = self.gradient_penalty(leading_share(x, share), leading_share(generated, share))
        return {"loss": self.config.penalty * penalty - w1, "w1": w1, "penalty": penalty}

    def gradient_penalty(self, x: Tensor, generated: Tensor) -> Tensor:
        """E(|grad C(x^)| - 1)^2 at uniform points on the lines between the pairs: scalar."""
        between = torch.lerp(generated, x, parallel.rand(len(x), *[1] * (x.dim() - 1), device=x.device))
        # The derivative of the square root is infinite at 0.
        return ((squared_gradient(self.criticize, between) + 1e-12).sqrt() - 1).square().mean()

    def criticize(self, x: Tensor) -> Tensor:
        """C(x): [B, *data_shape] -> [B], unbounded."""
        return self.critic(x)[:, 0]
