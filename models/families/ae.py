"""The auto-encoder: an encoder to a small code and a decoder back, trained for reconstruction.

    min  E |x - g(f(x))|^2,   z = f(x)                                   (Rumelhart, Hinton & Williams 1986)

The loss does not determine the distribution of the codes. Most samples of N(0, I) decode to no digit, as the standard
prior shows. The default prior is therefore a mixture of Gaussians fitted to the codes.
"""

from dataclasses import dataclass, field

from torch import Tensor

from models.autoencoder import Autoencoder
from models.base import About, Recipe, Terms
from models.losses import squared_error
from models.nets import LEVELS_HELP


@dataclass(frozen=True)
class AEConfig:
    latent: int = field(default=16, metadata={"help": "dimensions of the code z"})
    width: int = field(default=32, metadata={"help": "channels at the largest size, doubled at each lower one"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})


class AE(Autoencoder):
    """An auto-encoder without a constraint on its codes."""

    Config = AEConfig
    about = About(
        title="Auto-encoder",
        formula="min_{f,g}  E|x - g(f(x))|^2;  samples: x = g(z), z from N(0, I) or from a mixture fitted to the codes",
        paper="Hinton & Salakhutdinov, Reducing the dimensionality of data with neural networks, 2006",
    )
    recipe = Recipe(epochs=10, batch=128, lr=1e-3, ema=50_000, cosine=True)
    config: AEConfig

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        return {"loss": squared_error(x, self.decoder(self.encoder(x)).tanh())}
