"""The best unconditional GAN here: convolutional nets, a game that converges, an averaged generator.

The nets are Radford's (2016), with batch norm in G and none in D. The game compares pairs, which leaves no minimum that
drops a mode (Huang et al. 2024). G chooses among groups, so few samples lie between digits.

    D: min E softplus(D(G(z)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z))|^2)
    G: min E softplus(D(x) - D(G(z)))
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from models.adversarial import GroupedGAN, GroupsConfig, RelativisticConfig, RelativisticGAN
from models.base import About, Recipe, Terms
from models.losses import r1_r2_penalties
from models.nets import discriminator


@dataclass(frozen=True)
class DCGANConfig(RelativisticConfig, GroupsConfig):
    """The settings of the relativistic game and of the grouped generator."""


class DCGAN(GroupedGAN, RelativisticGAN):
    """Generates any digit."""

    Config = DCGANConfig
    about = About(
        title="Convolutional GAN",
        formula="D: min E softplus(D(G(z)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z))|^2);  "
        "G: min E softplus(D(x) - D(G(z)))",
        paper="Radford et al., Unsupervised representation learning with deep convolutional GANs, arXiv 1511.06434; "
        "game: Huang et al., The GAN is dead; long live the GAN!, arXiv 2501.05441",
    )
    recipe = Recipe(epochs=20, batch=32, lr=2.5e-4, betas=(0.0, 0.99), ema=50_000, cosine=True)
    revision = 2
    config: DCGANConfig

    def __init__(self, config: DCGANConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = discriminator(self.data_shape, 1, config.discriminator_width, config.levels)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        generated = self.generate_batch(self.one_hot(label))
        if player == "generator":
            return {"loss": F.softplus(self.discriminate(x) - self.discriminate(generated)).mean()}
        generated = generated.detach()
        margin = self.discriminate(x) - self.discriminate(generated)
        game = F.softplus(-margin).mean()
        r1, r2 = r1_r2_penalties(self.discriminate, x, generated, self.config.penalty_share)
        loss = game + self.config.gamma / 2 * (r1 + r2)
        return {"loss": loss, "game": game, "margin": margin.mean(), "r1": r1, "r2": r2}

    def discriminate(self, x: Tensor) -> Tensor:
        """D(x): [B, *data_shape] -> [B]."""
        return self.discriminator(x)[:, 0]
