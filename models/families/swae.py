"""The sliced-Wasserstein auto-encoder: optimal transport moves the codes towards N(0, I).

    min  E |x - g(f(x))|^2 + lambda SW_2^2(f(x), N(0, I))                     (Kolouri et al. 2018, equation 15)

In one dimension, optimal transport is sorting. The loss projects the codes of a batch, and as many samples of N(0, I),
onto many directions, sorts both, and penalises the distance between each code and the sample of the same rank.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models import parallel
from models.autoencoder import Autoencoder
from models.base import About, Recipe, Terms
from models.losses import sliced_wasserstein, squared_error
from models.nets import LEVELS_HELP


@dataclass(frozen=True)
class SWAEConfig:
    latent: int = field(default=16, metadata={"help": "dimensions of the code z"})
    width: int = field(default=32, metadata={"help": "channels at the largest size, doubled at each lower one"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    weight: float = field(default=100.0, metadata={"help": "lambda, the weight of the sliced-Wasserstein distance"})
    projections: int = field(default=500, metadata={"help": "number of random directions per batch"})


class SWAE(Autoencoder):
    """An auto-encoder whose codes follow N(0, I), without a density or sampling in the encoder."""

    Config = SWAEConfig
    about = About(
        title="Sliced-Wasserstein auto-encoder",
        formula="min_{f,g}  E|x - g(f(x))|^2 + lambda SW_2^2(f(x), N(0, I)),  "
        "SW_2^2 = mean over directions theta of |sort(theta'z) - sort(theta'eps)|^2",
        paper="Kolouri et al., Sliced-Wasserstein Auto-Encoder, arXiv 1804.01947",
    )
    recipe = Recipe(epochs=10, batch=256, lr=1e-3, ema=50_000, cosine=True)
    config: SWAEConfig

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        z = self.encoder(x)
        reconstruction = squared_error(x, self.decoder(z).tanh())
        theta = F.normalize(torch.randn(z.shape[1], self.config.projections, device=z.device), dim=0)
        codes = parallel.all_gather(z)
        distance = sliced_wasserstein(codes, torch.randn_like(codes), theta)
        loss = reconstruction + self.config.weight * distance
        return {"loss": loss, "reconstruction": reconstruction, "sliced_wasserstein": distance}
