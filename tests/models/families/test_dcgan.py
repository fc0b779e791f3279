"""The convolutional GAN's game."""

import pytest
import torch
from torch import nn

from models.families.dcgan import DCGAN, DCGANConfig


@pytest.fixture
def dcgan():
    torch.manual_seed(0)
    return DCGAN(DCGANConfig(generator_width=8, discriminator_width=8, gamma=0.0))


def test_the_sides_want_the_margin_to_go_opposite_ways(dcgan):
    x, label = torch.randn(4, 1, 28, 28), torch.zeros(4)
    torch.manual_seed(1)
    d = dcgan.loss("discriminator", x, label)
    torch.manual_seed(1)
    g = dcgan.loss("generator", x, label)
    # softplus(m) - softplus(-m) = m.
    assert (g["loss"] - d["loss"]).item() == pytest.approx(d["margin"].item(), abs=1e-4)


def test_the_penalties_are_those_of_both_sides():
    torch.manual_seed(0)
    family = DCGAN(DCGANConfig(generator_width=8, discriminator_width=8, gamma=0.3, penalty_share=1.0))
    terms = family.loss("discriminator", torch.randn(4, 1, 28, 28), torch.zeros(4))
    expected = terms["game"] + 0.15 * (terms["r1"] + terms["r2"])
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["r1"].item() != terms["r2"].item()


def test_only_the_generator_is_normalised_over_the_batch(dcgan):
    def normalised(net):
        return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())

    assert normalised(dcgan.generator)
    assert not normalised(dcgan.discriminator)


def test_the_discriminator_judges_the_image_as_a_whole(dcgan):
    # A sum of opinions of patches has no term in which the first and the last row meet.
    top, bottom = torch.zeros(2, 1, 1, 28, 28)
    top[..., :4, :], bottom[..., -4:, :] = 3.0, 3.0
    nothing = torch.zeros_like(top)
    with torch.no_grad():
        both, one, other, none = (dcgan.discriminate(x).item() for x in (top + bottom, top, bottom, nothing))
    assert abs(both - one - other + none) > 1e-3
