"""The variational auto-encoder against closed forms."""

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from models.families.vae import VAE, VAEConfig, gaussian_kl


def test_the_kl_is_the_closed_form():
    mu, log_var = torch.randn(5, 7), torch.randn(5, 7)
    q = distributions.Normal(mu, (log_var / 2).exp())
    truth = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(gaussian_kl(mu, log_var), truth, atol=1e-5)


def test_both_terms_are_sums_over_pixels_and_codes():
    vae = VAE(VAEConfig(width=8, latent=3))
    x = torch.rand(6, 1, 28, 28) * 2 - 1
    torch.manual_seed(3)
    terms = vae.loss("self", x, torch.full((6,), -1))
    torch.manual_seed(3)
    mu, log_var = vae.encoder(x).chunk(2, dim=1)
    logits = vae.decoder(mu + torch.randn_like(mu) * (log_var / 2).exp())
    by_pixel = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="none")
    assert terms["reconstruction"].item() == pytest.approx(by_pixel.flatten(1).sum(1).mean().item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["reconstruction"] + terms["kl"]).item(), rel=1e-6)
    assert terms["reconstruction"].item() > 100  # 784 pixels at about 0.7 nats each, not their mean


def test_the_code_of_an_image_is_its_mean():
    vae = VAE(VAEConfig(width=8, latent=3))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(vae.encode(x, torch.zeros(2, 0)), vae.encoder(x)[:, :3])
