"""The auxiliary-classifier GAN: D predicts whether an image is real and which digit it shows; G optimises both.

    L_C = E log C(x)_y + E log C(G(z, y))_y                                       (Odena et al. 2017, equation 3)
    D and C: min E softplus(D(G(z, y)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z, y))|^2) - lambda L_C
    G: min E softplus(D(x) - D(G(z, y))) - lambda E log C(G(z, y))_y

Odena's source loss (equation 2) is the original GAN's, which drops rare variants of a digit; this one compares a real
and a generated image of the same digit (Huang et al. 2024). C's head gives logits; a softmax before the cross entropy
would flatten its gradient.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models import parallel
from models.adversarial import RelativisticConfig, RelativisticGAN
from models.base import About, Recipe, Terms
from models.losses import cross_entropy, r1_r2_penalties
from models.nets import discriminator


@dataclass(frozen=True)
class ACGANConfig(RelativisticConfig):
    classifier_weight: float = field(default=1.0, metadata={"help": "lambda, the weight of L_C beside L_S"})


class ACGAN(RelativisticGAN):
    """Generates a given digit. D's first output is the logit of the source, the others are those of the classes."""

    Config = ACGANConfig
    about = About(
        title="Auxiliary-classifier GAN",
        formula="D, C: min E softplus(D(G(z, y)) - D(x)) + gamma/2 (E|grad D(x)|^2 + E|grad D(G(z, y))|^2) "
        "- lambda (E log C(x)_y + E log C(G(z, y))_y);  "
        "G: min E softplus(D(x) - D(G(z, y))) - lambda E log C(G(z, y))_y",
        paper="Odena et al., Conditional image synthesis with auxiliary classifier GANs, arXiv 1610.09585; "
        "game: Huang et al., The GAN is dead; long live the GAN!, arXiv 2501.05441",
    )
    recipe = Recipe(epochs=20, batch=32, lr=2.5e-4, betas=(0.0, 0.99), ema=50_000, cosine=True)
    conditional = True
    unconditional = False
    samples_label = True
    config: ACGANConfig

    def __init__(self, config: ACGANConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = discriminator(
            self.data_shape, 1 + max(classes, 1), config.discriminator_width, config.levels
        )

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        # Real images without a label train the source only; G gets a random digit for each of them.
        unlabelled = torch.full_like(label, -1)
        digits = parallel.randint(self.classes, len(label), label.device) if self.classes else unlabelled
        target = torch.where(label >= 0, label, digits)
        generated = self.generate_batch(self.one_hot(target))
        weight = self.config.classifier_weight
        if player == "generator":
            on_g = self.discriminator(generated)
            source = F.softplus(self.discriminator(x)[:, 0] - on_g[:, 0]).mean()
            classifier = cross_entropy(on_g[:, 1:], target)
            return {"loss": source + weight * classifier, "source": source, "classifier": classifier}
        generated = generated.detach()
        on_x, on_g = self.discriminator(x), self.discriminator(generated)
        margin = on_x[:, 0] - on_g[:, 0]
        source = F.softplus(-margin).mean()
        classifier = cross_entropy(on_x[:, 1:], label) + cross_entropy(on_g[:, 1:], target)
        r1, r2 = r1_r2_penalties(lambda part: self.discriminator(part)[:, 0], x, generated, self.config.penalty_share)
        loss = source + weight * classifier + self.config.gamma / 2 * (r1 + r2)
        return {
            "loss": loss,
            "source": source,
            "classifier": classifier,
            "margin": margin.mean(),
            "r1": r1,
            "r2": r2,
        }
