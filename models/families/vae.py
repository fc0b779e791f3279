"""The variational auto-encoder: an auto-encoder whose codes are regularised towards N(0, I).

    log p(x) >= E_q(z|x) log p(x|z) - KL(q(z|x) || N(0, I))        (Kingma & Welling 2014, equations 3 and 10)

q(z|x) = N(mu(x), diag sigma(x)^2) and p(x|z) is a Bernoulli per pixel. Both terms are summed over pixels and codes and
averaged over images only: averaging over pixels, too, would weight the KL 784 times more than the bound does.

The aggregate posterior, the distribution of all codes of the data, still differs from N(0, I): codes between its
clusters decode to no digit. The default prior is a mixture fitted to the codes.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models import parallel, prior
from models.autoencoder import Autoencoder
from models.base import About, Recipe, Rows, Terms
from models.nets import LEVELS_HELP


@dataclass(frozen=True)
class VAEConfig:
    latent: int = field(default=16, metadata={"help": "dimensions of the code z"})
    width: int = field(default=32, metadata={"help": "channels at the largest size, doubled at each lower one"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    beta: float = field(default=1.0, metadata={"help": "weight of the KL term; 1 is the bound itself"})


class VAE(Autoencoder):
    """Convolutional encoder and decoder with a Gaussian code. The state of the only step is z."""

    Config = VAEConfig
    about = About(
        title="Variational auto-encoder",
        formula="min  -E_q[log p(x|z)] + beta KL(q(z|x) || N(0, I)),  KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)",
        paper="Kingma & Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114; "
        "beta: Higgins et al., beta-VAE, ICLR 2017",
    )
    recipe = Recipe(epochs=20, batch=128, lr=1e-3, ema=50_000, cosine=True)
    likelihood = "bound"
    config: VAEConfig

    def __init__(self, config: VAEConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes, outputs=2 * config.latent)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        mu, log_var = self.posterior(x)
        logits = self.decoder(mu + parallel.randn(*mu.shape, device=mu.device) * (log_var / 2).exp())
        reconstruction = -log_bernoulli(x, logits).mean()
        kl = gaussian_kl(mu, log_var).mean()
        return {"loss": reconstruction + self.config.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def log_likelihood(self, x: Tensor, label: Tensor) -> Tensor:
        """The bound (beta 1), with one sample of q(z|x) per image."""
        mu, log_var = self.posterior(x)
        z = mu + torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)).to(mu) * (log_var / 2).exp()
        return log_bernoulli(x, self.decoder(z)) - gaussian_kl(mu, log_var)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 of q(z|x), [B, latent] each."""
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        return mu, log_var

    def fit(self, x: Tensor, label: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)

        def sample_code(part: Tensor) -> Tensor:
            mu, log_var = self.posterior(part)
            return mu + torch.randn(mu.shape, generator=generator).to(mu) * (log_var / 2).exp()

        self.prior.fit(prior.codes(sample_code, x)[0])

    def step(self, rows: Rows) -> Tensor:
        return 2 * self.decoder(rows.state).sigmoid() - 1

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """mu(x), the mean of the code: [B, *data_shape] -> [B, latent]."""
        return self.posterior(x)[0]


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) in nats, summed over pixels: x in [-1, 1] and logits [B, 1, 28, 28] -> [B]."""
    return -F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="none").flatten(1).sum(1)


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, diag exp log_var) || N(0, I)) in nats, summed over codes: [B, latent] twice -> [B]."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1)
