"""The lecture's GAN and its two objectives."""

import math

import pytest
import torch
from torch import nn

from models.families.gan import GAN, GANConfig
from tests.conftest import assert_weights_reach


def widths(net):
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def test_the_nets_have_the_widths_of_the_lecture():
    gan = GAN(GANConfig())
    assert widths(gan.generator) == [100, 128, 256, 784]
    assert widths(gan.discriminator) == [784, 256, 128, 1]


def constant_discriminator(logit, loss):
    gan = GAN(GANConfig(loss=loss))
    gan.discriminator = nn.Sequential(nn.Linear(784, 1))
    nn.init.zeros_(gan.discriminator[0].weight)
    nn.init.constant_(gan.discriminator[0].bias, logit)
    return gan


def test_losses_equal_the_equations():
    x, label = torch.zeros(4, 1, 28, 28), torch.full((4,), -1)
    for logit in (-2.0, 0.0, 3.0):
        d = 1 / (1 + math.exp(-logit))
        minimax = constant_discriminator(logit, "minimax")
        assert minimax.loss("discriminator", x, label)["loss"].item() == pytest.approx(
            -math.log(d) - math.log(1 - d), 1e-4
        )
        assert minimax.loss("generator", x, label)["loss"].item() == pytest.approx(math.log(1 - d), rel=1e-4)
        non_saturating = constant_discriminator(logit, "non_saturating")
        assert non_saturating.loss("generator", x, label)["loss"].item() == pytest.approx(-math.log(d), rel=1e-4)


def test_the_discriminator_has_the_configured_number_of_steps():
    assert GAN(GANConfig(discriminator_steps=3)).update_order() == ("discriminator",) * 3 + ("generator",)


def test_the_loss_of_the_discriminator_has_no_gradient_for_the_generator():
    gan = GAN(GANConfig())
    loss = gan.loss("discriminator", torch.zeros(4, 1, 28, 28), torch.full((4,), -1))["loss"]
    gradients = torch.autograd.grad(loss, list(gan.generator.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_points_are_supported():
    gan = GAN(GANConfig(latent=2), data_shape=(2,))
    assert gan.generate(torch.randn(5, 2)).shape == (5, 2)


def test_committed_weights_reach_their_goals():
    assert_weights_reach("gan", mnist_cnn_fd=6.0, precision=0.7)
