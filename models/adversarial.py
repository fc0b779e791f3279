"""The generator that all convolutional GANs share, and the relativistic game that most of them play."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import noise, parallel
from models.base import Family, Rows
from models.nets import LEVELS_HELP, decoder, encoder


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of the generator."""

    latent: int = field(default=64, metadata={"help": "dimensions of z"})
    generator_width: int = field(default=24, metadata={"help": "channels of G at full size, doubled at each lower one"})
    truncation: float = field(
        default=0.8, metadata={"help": "scale of z when sampling; below 1 fewer odd digits, and less variety"}
    )
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})


@dataclass(frozen=True)
class GroupsConfig(GeneratorConfig):
    """Settings of an unconditional generator that chooses among groups."""

    groups: int = field(default=16, metadata={"help": "leading dimensions of z; the largest of them chooses the group"})
    sharpness: float = field(default=50.0, metadata={"help": "inverse temperature of the softmax over the groups"})


@dataclass(frozen=True)
class RelativisticConfig(GeneratorConfig):
    """Settings of the relativistic game."""

    discriminator_width: int = field(
        default=32, metadata={"help": "channels of D at half the size, doubled at each lower one"}
    )
    discriminator_pace: float = field(default=4.0, metadata={"help": "D's learning rate over G's"})
    gamma: float = field(default=0.1, metadata={"help": "weight of the two gradient penalties"})
    penalty_share: float = field(default=0.25, metadata={"help": "share of each batch used for the penalties"})


class ConvolutionalGAN(Family):
    """G turns z ~ N(0, I), and the label of a conditional model, into an image. The state of the only step is z.

    The state has shape [B, latent]. Subclasses define the opponent and the losses.

    G is trained with z ~ N(0, I) and sampled with a shorter z, because G is best where it was trained most often (the
    truncation trick: Brock et al. 2019, section 3.1).
    """

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.generator = decoder(self.data_shape, config.latent + self.classes, config.generator_width, config.levels)

    def generate_batch(self, label: Tensor) -> Tensor:
        """G of fresh z from torch's global generator, one row per label [B, classes]: [B, *data_shape]."""
        return self.generate(parallel.randn(len(label), self.config.latent, device=label.device), label)

    def generate(self, z: Tensor, label: Tensor) -> Tensor:
        """G(z, y): [B, latent] and [B, classes] -> [B, *data_shape] in [-1, 1]."""
        return self.generator(torch.cat((z, label), dim=1)).tanh()

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return self.config.truncation * noise.initial(seed, index, (self.config.latent,))

    def step(self, rows: Rows) -> Tensor:
        return self.generate(rows.state, rows.label)


class GroupedGAN(ConvolutionalGAN):
    """A GAN whose unconditional G chooses among learned groups.

    A continuous map sends N(0, I) to one connected piece, so some samples lie between any two digits (Khayatkhoei et
    al. 2018, arXiv 1806.00880). Here the leading dimensions of z pass through a softmax so steep that one of them gets
    nearly all the weight; training decides what that group stands for. Two groups remain connected, so interpolation
    works, but few samples lie between them.
    """

    config: GroupsConfig

    def generate(self, z: Tensor, label: Tensor) -> Tensor:
        groups = self.config.groups
        choice = F.softmax(self.config.sharpness * z[:, :groups], dim=1)
        scaled = math.sqrt(groups) * choice  # has the norm that the replaced dimensions had
        return super().generate(torch.cat((scaled, z[:, groups:]), dim=1), label)


class RelativisticGAN(ConvolutionalGAN):
    """D compares x with G(z) in pairs; gradient penalties keep D flat around both.

        D: min E softplus(D(G(z)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z))|^2)
        G: min E softplus(D(x) - D(G(z)))                                 (Huang et al. 2024, arXiv 2501.05441)

    D may have a higher learning rate than G (Heusel et al. 2017, arXiv 1706.08500): G corrects only what D detects.
    """

    players = ("discriminator", "generator")
    training_only = ("discriminator",)
    config: RelativisticConfig

    def lr_multiplier(self, player: str) -> float:
        return self.config.discriminator_pace if player == "discriminator" else 1.0


class ProjectionDiscriminator(nn.Module):
    """D(x, y) = psi(h(x)) + <embed(y), h(x)>, one logit per image (Miyato & Koyama 2018, equation 3)."""

    def __init__(self, data_shape: tuple[int, ...], width: int, classes: int, levels: int, features: int = 128) -> None:
        super().__init__()
        self.encoder = encoder(data_shape, features, width, levels)
        self.logit = nn.Linear(features, 1)
        self.embed = nn.Linear(classes, features, bias=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = F.leaky_relu(self.encoder(x), 0.2)  # [B, features]
        return self.logit(h)[:, 0] + (self.embed(label) * h).sum(1)  # [B]
