"""The auxiliary-classifier GAN: D says whether an image is real and which digit it shows; G wants to be right on both.

    L_S = E log D(x) + E log(1 - D(G(z, y))),   L_C = E log C(x)_y + E log C(G(z, y))_y
    D and C: max L_S + L_C,   G: max L_C - L_S                                    (Odena et al. 2017, equations 2-3)

G's part of L_S is the non-saturating one. Penalties on D's slope at real and at generated images (Mescheder et al.
2018) keep the game from running away. C's head gives logits; a softmax before the cross entropy would flatten its
gradient.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models.adversarial import ConvolutionalGAN, GeneratorConfig
from models.base import About, Recipe, Terms
from models.losses import cross_entropy, slopes
from models.nets import Discriminator


@dataclass(frozen=True)
class ACGANConfig(GeneratorConfig):
    discriminator_width: int = field(default=32, metadata={"help": "channels of D at 14x14, twice at each half"})
    discriminator_pace: float = field(default=4.0, metadata={"help": "D's learning rate over G's"})
    classifier_weight: float = field(default=0.5, metadata={"help": "weight of L_C beside L_S"})
    gamma: float = field(default=0.1, metadata={"help": "weight of the two gradient penalties"})
    penalty_share: float = field(default=0.25, metadata={"help": "part of each batch that the penalties are taken on"})


class ACGAN(ConvolutionalGAN):
    """Draws the digit it is asked for. D's first output is the source's logit, the others are the classes'."""

    Config = ACGANConfig
    about = About(
        title="Auxiliary-classifier GAN",
        formula="D, C: max L_S + L_C;  G: max L_C - L_S;  L_S = E[log D(x)] + E[log(1 - D(G(z, y)))],  "
        "L_C = E[log C(x)_y] + E[log C(G(z, y))_y]",
        paper="Odena et al., Conditional image synthesis with auxiliary classifier GANs, arXiv 1610.09585; "
        "penalty: Mescheder et al., arXiv 1801.04406",
    )
    recipe = Recipe(epochs=24, batch=64, lr=3e-4, betas=(0.0, 0.99), ema=50_000, cosine=True)
    players = ("discriminator", "generator")
    opponents = ("discriminator",)
    conditional = True
    unconditional = False
    compiles = False
    config: ACGANConfig

    def __init__(self, config: ACGANConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = Discriminator(1 + max(classes, 1), config.discriminator_width)

    def pace(self, player: str) -> float:
        return self.config.discriminator_pace if player == "discriminator" else 1.0

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        # Images of unknown digit are judged for their source alone; G is told some digit for each.
        some = torch.randint_like(label, self.classes) if self.classes else torch.full_like(label, -1)
        asked = torch.where(label >= 0, label, some)
        generated = self.generated(self.one_hot(asked))
        weight = self.config.classifier_weight
        if player == "generator":
            outputs = self.discriminator(generated)
            source, classifier = F.softplus(-outputs[:, 0]).mean(), cross_entropy(outputs[:, 1:], asked)
            return {"loss": source + weight * classifier, "source": source, "classifier": classifier}
        on_x, on_g = self.discriminator(x), self.discriminator(generated.detach())
        source = F.softplus(-on_x[:, 0]).mean() + F.softplus(on_g[:, 0]).mean()
        classifier = cross_entropy(on_x[:, 1:], label) + cross_entropy(on_g[:, 1:], asked)
        r1, r2 = slopes(lambda part: self.discriminator(part)[:, 0], x, generated.detach(), self.config.penalty_share)
        loss = source + weight * classifier + self.config.gamma / 2 * (r1 + r2)
        return {"loss": loss, "source": source, "classifier": classifier, "r1": r1, "r2": r2}
