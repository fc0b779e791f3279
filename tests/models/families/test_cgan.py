"""The conditional GAN's discriminator and penalties."""

import pytest
import torch

from models.families.cgan import CGAN, CGANConfig
from tests.conftest import assert_weights_reach


@pytest.fixture
def cgan():
    torch.manual_seed(0)
    return CGAN(CGANConfig(generator_width=8, discriminator_width=8))


def test_the_output_of_the_discriminator_depends_on_the_digit(cgan):
    x = torch.randn(1, 1, 28, 28).expand(10, -1, -1, -1)
    assert len(torch.unique(cgan.discriminator(x, torch.eye(10)))) == 10


def test_the_players_optimise_the_margin_in_opposite_directions():
    torch.manual_seed(0)
    cgan = CGAN(CGANConfig(generator_width=8, discriminator_width=8, gamma=0.0))
    x, label = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
    torch.manual_seed(1)
    d = cgan.loss("discriminator", x, label)
    torch.manual_seed(1)
    g = cgan.loss("generator", x, label)
    # softplus(m) - softplus(-m) = m.
    assert d["loss"].item() == pytest.approx(d["game"].item())
    assert (g["loss"] - d["loss"]).item() == pytest.approx(d["margin"].item(), abs=1e-4)


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "cgan", mnist_cnn_fd=0.6, precision=0.8, recall=0.5, coverage=0.7, accuracy=0.985, worst_digit=0.96
    )
