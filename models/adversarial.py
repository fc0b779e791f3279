"""What the convolutional GANs have in common: the generator, and for most of them the game."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models import noise, parallel
from models.base import Family, Rows
from models.nets import decoder


@dataclass(frozen=True)
class GeneratorConfig:
    """What every G is built from and drawn by."""

    latent: int = field(default=64, metadata={"help": "numbers in z"})
    generator_width: int = field(default=24, metadata={"help": "channels of G at 28x28, twice at each half"})
    truncation: float = field(
        default=0.8, metadata={"help": "scale of z when drawing; below 1 fewer odd digits, and less variety"}
    )


@dataclass(frozen=True)
class GroupsConfig(GeneratorConfig):
    """What a G that is told no digit chooses by."""

    groups: int = field(default=16, metadata={"help": "first numbers of z, which choose: the greatest counts"})
    sharpness: float = field(default=50.0, metadata={"help": "how little the others count"})


@dataclass(frozen=True)
class RelativisticConfig(GeneratorConfig):
    """What the relativistic game is played with."""

    discriminator_width: int = field(default=32, metadata={"help": "channels of D at 14x14, twice at each half"})
    discriminator_pace: float = field(default=4.0, metadata={"help": "D's learning rate over G's"})
    gamma: float = field(default=0.1, metadata={"help": "weight of the two gradient penalties"})
    penalty_share: float = field(default=0.25, metadata={"help": "part of each batch that the penalties are taken on"})


class ConvolutionalGAN(Family):
    """G turns z ~ N(0, I), and the label where there is one, into an image; the state of its one link is z [B, latent].

    Who plays against G, and at what, is the family's own.

    G is trained on z ~ N(0, I) and drawn from with a z that is a little shorter: what it does best lies where it has
    been most often (the truncation trick: Brock et al. 2019, section 3.1).
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.generator = decoder(self.data_shape, config.latent + self.classes, config.generator_width)

    def generate_batch(self, label: Tensor) -> Tensor:
        """G of fresh z from torch's global generator, a row for each label [B, classes]: [B, *data_shape]."""
        return self.generate(parallel.randn(len(label), self.config.latent, device=label.device), label)

    def generate(self, z: Tensor, label: Tensor) -> Tensor:
        """G(z, y): [B, latent] and [B, classes] -> [B, *data_shape] in [-1, 1]."""
        return self.generator(torch.cat((z, label), dim=1)).tanh()

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return self.config.truncation * noise.initial(seed, index, (self.config.latent,))

    def step(self, rows: Rows) -> Tensor:
        return self.generate(rows.state, rows.label)


class GroupedGAN(ConvolutionalGAN):
    """G that is told no digit, and chooses among groups of its own.

    Continuous maps send N(0, I) to one piece, so that there are draws between any two digits (Khayatkhoei et al. 2018,
    arXiv 1806.00880). Here the first numbers of z go through a softmax so steep that one of them is nearly all; what it
    stands for is learned. Between two choices there still is a way, and a walk takes it, but few draws lie on it.
    """

    config: GroupsConfig

    def generate(self, z: Tensor, label: Tensor) -> Tensor:
        groups = self.config.groups
        choice = F.softmax(self.config.sharpness * z[:, :groups], dim=1)
        scaled = math.sqrt(groups) * choice  # weighs as much as the numbers did
        return super().generate(torch.cat((scaled, z[:, groups:]), dim=1), label)


class RelativisticGAN(ConvolutionalGAN):
    """D judges how much more real x is than G(z), a pair at a time, and is kept flat around both.

        D: min E softplus(D(G(z)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z))|^2)
        G: min E softplus(D(x) - D(G(z)))                                 (Huang et al. 2024, arXiv 2501.05441)

    D may learn faster than G (Heusel et al. 2017, arXiv 1706.08500): what it does not see, G need not mend.
    """

    players = ("discriminator", "generator")
    training_only = ("discriminator",)
    compiles = False
    config: RelativisticConfig

    def lr_multiplier(self, player: str) -> float:
        return self.config.discriminator_pace if player == "discriminator" else 1.0
