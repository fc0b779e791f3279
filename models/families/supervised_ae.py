"""The class-supervised auto-encoder: a classifier on the code separates the codes of the digits.

    min  E |x - g(f(x))|^2 + lambda E[-log softmax(h(f(x)))_y]                       (Le, Patterson & White 2018)

The codes of each digit form clusters of their own, so a Gaussian mixture fitted to them samples only that digit.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from models import noise, prior
from models.base import About, Family, Recipe, Rows, Terms
from models.losses import cross_entropy, squared_error
from models.mixture import LabelledMixture
from models.nets import LEVELS_HELP, decoder, encoder


@dataclass(frozen=True)
class SupervisedAEConfig:
    latent: int = field(default=16, metadata={"help": "dimensions of the code z"})
    width: int = field(default=32, metadata={"help": "channels at the largest size, doubled at each lower one"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    weight: float = field(default=10.0, metadata={"help": "lambda, the weight of the classifier's cross entropy"})
    most: int = field(default=4, metadata={"help": "maximum Gaussians per digit; candidates are 1, 2, 4, ..."})


class SupervisedAE(Family):
    """Convolutional encoder and decoder with a linear classifier on the code. The state of the only step is z."""

    Config = SupervisedAEConfig
    about = About(
        title="Class-supervised auto-encoder",
        formula="min_{f,g,h}  E|x - g(f(x))|^2 - lambda E log softmax(h(f(x)))_y;  samples: x = g(z), z ~ p(z | y)",
        paper="Le, Patterson & White, Supervised autoencoders: Improving generalization performance with unsupervised "
        "regularizers, NeurIPS 2018",
    )
    recipe = Recipe(epochs=10, batch=128, lr=1e-3, ema=50_000, cosine=True)
    conditional = True
    encodes = True
    config: SupervisedAEConfig

    def __init__(
        self, config: SupervisedAEConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10
    ) -> None:
        super().__init__(config, data_shape, classes)
        self.encoder = encoder(self.data_shape, config.latent, config.width, config.levels)
        self.decoder = decoder(self.data_shape, config.latent, config.width, config.levels)
        self.head = nn.Linear(config.latent, max(classes, 1))
        self.mixture = LabelledMixture(config.most, config.latent, self.classes)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        z = self.encoder(x)
        reconstruction = squared_error(x, self.decoder(z).tanh())
        classification = cross_entropy(self.head(z), label)
        loss = reconstruction + self.config.weight * classification
        return {"loss": loss, "reconstruction": reconstruction, "cross_entropy": classification}

    def fit(self, x: Tensor, label: Tensor) -> None:
        codes, indices = prior.codes(self.encoder, x)
        self.mixture.fit(codes.cpu(), label[indices].cpu())

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        eps = noise.initial(seed, index, (self.config.latent,))
        return self.mixture.sample(noise.uniform(seed, index), eps, self.mixture.component_weights(label))

    def step(self, rows: Rows) -> Tensor:
        return self.decoder(rows.state).tanh()

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """f(x): [B, *data_shape] -> [B, latent]."""
        return self.encoder(x)
