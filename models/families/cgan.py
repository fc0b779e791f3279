"""The conditional GAN: generator and discriminator both receive the digit.

The conditioning is Mirza & Osindero's (2014): G takes (z, y), D takes (x, y). The nets are convolutional. The game is
the relativistic one with gradient penalties on both sides, because other games collapse within a digit: D predicts how
much more realistic x is than G(z, y) of the same digit, and the penalties keep it flat around both.

    D: min E softplus(D(G(z, y), y) - D(x, y)) + gamma/2 (E|grad D(x, y)|^2 + E|grad D(G(z, y), y)|^2)
    G: min E softplus(D(x, y) - D(G(z, y), y))                                            (Huang et al. 2024)
"""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from models.adversarial import ProjectionDiscriminator, RelativisticConfig, RelativisticGAN
from models.base import About, Recipe, Terms
from models.losses import r1_r2_penalties


@dataclass(frozen=True)
class CGANConfig(RelativisticConfig):
    discriminator_pace: float = field(default=1.0, metadata={"help": "D's learning rate over G's"})


class CGAN(RelativisticGAN):
    """Generates a given digit."""

    Config = CGANConfig
    about = About(
        title="Conditional GAN",
        formula="D: min E softplus(D(G(z, y), y) - D(x, y)) + gamma/2 (E|grad D(x, y)|^2 + E|grad D(G(z, y), y)|^2);  "
        "G: min E softplus(D(x, y) - D(G(z, y), y))",
        paper="Mirza & Osindero, Conditional Generative Adversarial Nets, arXiv 1411.1784; "
        "game: Huang et al., The GAN is dead; long live the GAN!, arXiv 2501.05441",
    )
    recipe = Recipe(epochs=32, batch=64, lr=3e-4, betas=(0.0, 0.99), ema=50_000, cosine=True)
    conditional = True
    unconditional = False
    samples_label = True
    config: CGANConfig

    def __init__(self, config: CGANConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = ProjectionDiscriminator(
            self.data_shape, config.discriminator_width, classes, config.levels
        )

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        y = self.one_hot(label)
        generated = self.generate_batch(y)
        if player == "generator":
            margin = self.discriminator(generated, y) - self.discriminator(x, y)
            return {"loss": F.softplus(-margin).mean()}
        generated = generated.detach()
        margin = self.discriminator(x, y) - self.discriminator(generated, y)
        game = F.softplus(-margin).mean()
        r1, r2 = r1_r2_penalties(
            lambda part: self.discriminator(part, y[: len(part)]), x, generated, self.config.penalty_share
        )
        loss = game + self.config.gamma / 2 * (r1 + r2)
        return {"loss": loss, "game": game, "margin": margin.mean(), "r1": r1, "r2": r2}
