"""The conditional GAN's discriminator and penalties."""

import pytest
import torch

from models.families.cgan import CGAN, CGANConfig


@pytest.fixture
def cgan():
    torch.manual_seed(0)
    return CGAN(CGANConfig(generator_width=8, discriminator_width=8))


def test_the_discriminator_judges_the_pair_of_image_and_digit(cgan):
    x = torch.randn(1, 1, 28, 28).expand(10, -1, -1, -1)
    assert len(torch.unique(cgan.discriminator(x, torch.eye(10)))) == 10


def test_the_game_is_zero_sum_but_for_the_penalty():
    torch.manual_seed(0)
    cgan = CGAN(CGANConfig(generator_width=8, discriminator_width=8, gamma=0.0))
    x, label = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
    torch.manual_seed(1)
    d = cgan.loss("discriminator", x, label)
    torch.manual_seed(1)
    g = cgan.loss("generator", x, label)
    # softplus(-m) - softplus(m) = -m: with one image the two losses differ by the margin.
    assert d["loss"].item() == pytest.approx(d["game"].item())
    assert (g["loss"] - d["loss"]).item() == pytest.approx(d["margin"].item(), abs=1e-4)
