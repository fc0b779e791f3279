"""The generator that the convolutional GANs share."""

import pytest
import torch

from models import families
from models.adversarial import ConvolutionalGAN, GroupedGAN
from tests.conftest import small

NAMES = [name for name in families.names() if issubclass(families.get(name), ConvolutionalGAN)]


@pytest.mark.parametrize("name", NAMES)
def test_z_is_shorter_for_sampling_than_for_training(name):
    family = small(name)
    index = torch.arange(500)
    z = family.initial_state(torch.zeros_like(index), index, family.one_hot(index % 10), torch.zeros(500, 0))
    assert family.config.truncation < 1
    assert z.std().item() == pytest.approx(family.config.truncation, rel=0.02)
    inputs = []
    family.generate = lambda z, _: inputs.append(z)
    family.generate_batch(family.one_hot(index % 10))
    assert inputs[0].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_served_generator_is_an_average_of_weights(name):
    assert families.get(name).recipe.ema > 0


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(families.get(name), GroupedGAN)])
def test_few_samples_lie_between_two_groups(name):
    family = small(name)
    index = torch.arange(2000)
    label = torch.zeros(2000, 0)
    inputs = []
    family.generator.forward = lambda code: inputs.append(code) or torch.zeros(len(code), 1, 28, 28)
    family.generate(family.initial_state(torch.zeros_like(index), index, label, label), label)
    choice = inputs[0][:, : family.config.groups] / family.config.groups**0.5
    assert torch.allclose(choice.sum(1), torch.ones(2000), atol=1e-5)
    assert (choice.max(1).values > 0.95).float().mean() > 0.85
    counts = choice.argmax(1).bincount(minlength=family.config.groups)
    assert (counts > 0.7 * 2000 / family.config.groups).all()
