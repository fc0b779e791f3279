"""The game of the convolutional GAN."""

import pytest
import torch
from torch import nn

from models.families.dcgan import DCGAN, DCGANConfig
from tests.conftest import assert_weights_reach


@pytest.fixture
def dcgan():
    torch.manual_seed(0)
    return DCGAN(DCGANConfig(generator_width=8, discriminator_width=8, gamma=0.0))


def test_the_players_optimise_the_margin_in_opposite_directions(dcgan):
    x, label = torch.randn(4, 1, 28, 28), torch.zeros(4)
    torch.manual_seed(1)
    d = dcgan.loss("discriminator", x, label)
    torch.manual_seed(1)
    g = dcgan.loss("generator", x, label)
    # softplus(m) - softplus(-m) = m.
    assert (g["loss"] - d["loss"]).item() == pytest.approx(d["margin"].item(), abs=1e-4)


def test_the_loss_includes_the_penalties_of_real_and_generated_images():
    torch.manual_seed(0)
    family = DCGAN(DCGANConfig(generator_width=8, discriminator_width=8, gamma=0.3, penalty_share=1.0))
    terms = family.loss("discriminator", torch.randn(4, 1, 28, 28), torch.zeros(4))
    expected = terms["game"] + 0.15 * (terms["r1"] + terms["r2"])
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["r1"].item() != terms["r2"].item()


def test_only_the_generator_has_batch_norm(dcgan):
    def has_batch_norm(net):
        return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())

    assert has_batch_norm(dcgan.generator)
    assert not has_batch_norm(dcgan.discriminator)


def test_the_discriminator_combines_distant_parts_of_the_image(dcgan):
    # A sum over patches would have no interaction between the first and the last rows.
    top, bottom = torch.zeros(2, 1, 1, 28, 28)
    top[..., :4, :], bottom[..., -4:, :] = 3.0, 3.0
    empty = torch.zeros_like(top)
    with torch.no_grad():
        both, first, last, none = (dcgan.discriminate(x).item() for x in (top + bottom, top, bottom, empty))
    assert abs(both - first - last + none) > 1e-3


def test_committed_weights_reach_their_goals():
    assert_weights_reach("dcgan", mnist_cnn_fd=0.3, precision=0.8, recall=0.6, coverage=0.8)
