"""The variational auto-encoder: an auto-encoder whose codes are asked to look like N(0, I).

    log p(x) >= E_q(z|x) log p(x|z) - KL(q(z|x) || N(0, I))        (Kingma & Welling 2014, equations 3 and 10)

q(z|x) = N(mu(x), diag sigma(x)^2) and p(x|z) is a Bernoulli per pixel. Both terms are summed over pixels and codes and
averaged over images only: averaging over pixels too would weigh the KL 784 times more than the bound does.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models import noise
from models.base import About, Family, Recipe, Rows, Terms
from models.nets import Decoder, Encoder


@dataclass(frozen=True)
class VAEConfig:
    latent: int = field(default=16, metadata={"help": "numbers in the code z"})
    width: int = field(default=32, metadata={"help": "channels of the encoder at 14x14 and of the decoder at 28x28"})


class VAE(Family):
    """Convolutional encoder and decoder around a Gaussian code; the state of its one link is z."""

    Config = VAEConfig
    about = About(
        title="Variational auto-encoder",
        formula="min  -E_q[log p(x|z)] + KL(q(z|x) || N(0, I)),  KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)",
        paper="Kingma & Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114",
    )
    recipe = Recipe(epochs=20, batch=128, lr=1e-3, ema=50_000, cosine=True)
    encodes = True
    config: VAEConfig

    def __init__(self, config: VAEConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.encoder = Encoder(2 * config.latent, config.width)
        self.decoder = Decoder(config.latent, config.width)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        mu, log_var = self.encoder(x).chunk(2, dim=1)  # [B, latent] each
        z = mu + torch.randn_like(mu) * (log_var / 2).exp()
        logits = self.decoder(z)
        reconstruction = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum") / len(x)
        kl = gaussian_kl(mu, log_var).mean()
        return {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def start(self, seed: Tensor, index: Tensor, label: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.full_like(seed, noise.START), (self.config.latent,))

    def step(self, rows: Rows) -> Tensor:
        return 2 * self.decoder(rows.state).sigmoid() - 1

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """mu(x), the code's mean: [B, 1, 28, 28] -> [B, latent]."""
        return self.encoder(x).chunk(2, dim=1)[0]


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, diag exp log_var) || N(0, I)) in nats, summed over codes: [B, latent] twice -> [B]."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1)
