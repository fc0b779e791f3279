"""What the convolutional GANs have in common: the generator."""

from typing import Any

import torch
from torch import Tensor

from models import noise
from models.base import Family, Rows
from models.nets import Decoder


class ConvolutionalGAN(Family):
    """G turns z ~ N(0, I), and the label where there is one, into an image; the state of its one link is z [B, latent].

    `config` has `latent`, `generator_width` and `truncation`. Who plays against G, and at what, is the family's own.

    G is trained on z ~ N(0, I) and drawn from with a z that is a little shorter: what it does best lies where it has
    been most often (the truncation trick: Brock et al. 2019, section 3.1).
    """

    def __init__(self, config: Any, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.generator = Decoder(config.latent + self.classes, config.generator_width)

    def generated(self, label: Tensor) -> Tensor:
        """G of fresh z from torch's global generator, a row for each label [B, classes]: [B, 1, 28, 28]."""
        return self.generate(torch.randn(len(label), self.config.latent, device=label.device), label)

    def generate(self, z: Tensor, label: Tensor) -> Tensor:
        """G(z, y): [B, latent] and [B, classes] -> [B, 1, 28, 28] in [-1, 1]."""
        return self.generator(torch.cat((z, label), dim=1)).tanh()

    def start(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        return self.config.truncation * noise.first(seed, index, (self.config.latent,))

    def step(self, rows: Rows) -> Tensor:
        return self.generate(rows.state, rows.label)
