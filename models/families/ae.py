"""The auto-encoder: a code so small that only what matters fits in, and back.

    min  E |x - g(f(x))|^2,   z = f(x)                                   (Rumelhart, Hinton & Williams 1986)

Nothing says how codes are distributed. Drawn from N(0, I) most decode to no digit: the standard prior shows it. A
mixture of Gaussians fitted to the codes is the remedy, and what is drawn from unless the other is asked for.
"""

from dataclasses import dataclass, field

from torch import Tensor

from models.autoencoder import Autoencoder
from models.base import About, Recipe, Terms
from models.losses import squared_error


@dataclass(frozen=True)
class AEConfig:
    latent: int = field(default=16, metadata={"help": "numbers in the code z"})
    width: int = field(default=32, metadata={"help": "channels of the encoder at 14x14 and of the decoder at 28x28"})


class AE(Autoencoder):
    """Codes are whatever loses least."""

    Config = AEConfig
    about = About(
        title="Auto-encoder",
        formula="min_{f,g}  E|x - g(f(x))|^2;  draws: x = g(z), z from N(0, I) or from a mixture fitted to the codes",
        paper="Hinton & Salakhutdinov, Reducing the dimensionality of data with neural networks, 2006",
    )
    recipe = Recipe(epochs=10, batch=128, lr=1e-3, ema=50_000, cosine=True)
    config: AEConfig

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        return {"loss": squared_error(x, self.decoder(self.encoder(x)).tanh())}
