"""The variational auto-encoder against closed forms."""

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from models.families.vae import VAE, VAEConfig, gaussian_kl
from tests.conftest import assert_weights_reach


def test_the_kl_equals_its_closed_form():
    mu, log_var = torch.randn(5, 7), torch.randn(5, 7)
    q = distributions.Normal(mu, (log_var / 2).exp())
    expected = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(gaussian_kl(mu, log_var), expected, atol=1e-5)


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
    assert terms["reconstruction"].item() > 100  # the sum over 784 pixels at about 0.7 nats each


def test_the_code_of_an_image_is_its_mean():
    vae = VAE(VAEConfig(width=8, latent=3))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(vae.encode(x, torch.zeros(2, 0)), vae.encoder(x)[:, :3])


def test_the_bound_is_the_negative_loss():
    vae = VAE(VAEConfig(width=8, latent=3)).for_sampling()
    x = torch.rand(500, 1, 28, 28) * 2 - 1
    torch.manual_seed(0)
    loss = vae.loss("self", x, torch.zeros(500))["loss"]
    assert float(-vae.log_likelihood(x, torch.zeros(500, 0)).mean()) == pytest.approx(loss.item(), rel=1e-3)


def test_beta_weights_only_the_kl():
    torch.manual_seed(0)
    x, label = torch.rand(8, 1, 28, 28) * 2 - 1, torch.zeros(8)
    terms = []
    for beta in (1.0, 4.0):
        torch.manual_seed(0)
        vae = VAE(VAEConfig(width=8, latent=3, beta=beta))
        terms.append({name: value.item() for name, value in vae.loss("self", x, label).items()})
    one, four = terms
    assert four["kl"] == one["kl"]
    assert four["loss"] - one["loss"] == pytest.approx(3 * one["kl"], abs=1e-3)


def test_codes_are_sampled_from_the_requested_prior():
    torch.manual_seed(0)
    vae = VAE(VAEConfig(width=8, latent=3))
    x = torch.rand(2000, 1, 28, 28) * 2 - 1
    # Codes far from N(0, I), so that the two priors differ.
    with torch.no_grad():
        vae.encoder.head.bias.copy_(torch.tensor([5.0, -5.0, 0.0, -4.0, -4.0, -4.0]))
    vae = vae.for_sampling()
    vae.fit(x, torch.zeros(2000))
    index = torch.arange(4000)
    fitted, standard = (
        vae.initial_state(torch.zeros_like(index), index, torch.zeros(4000, 0), vae.schedule(1, name).expand(4000, 1))
        for name in ("fitted", "standard")
    )
    codes = vae.encode(x, torch.zeros(2000, 0))
    torch.testing.assert_close(fitted.mean(0), codes.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=0.06, rtol=0)
    torch.testing.assert_close(standard.var(0), torch.ones(3), atol=0.08, rtol=0)


def test_committed_weights_reach_their_goals():
    assert_weights_reach("vae", mnist_cnn_fd=0.45, precision=0.85, recall=0.75, coverage=0.85)
