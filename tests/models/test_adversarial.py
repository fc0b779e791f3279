"""What the convolutional GANs share."""

import pytest
import torch

from models import families
from models.adversarial import ConvolutionalGAN
from tests.conftest import small

NAMES = [name for name in families.names() if issubclass(families.get(name), ConvolutionalGAN)]


@pytest.mark.parametrize("name", NAMES)
def test_z_is_shorter_in_drawing_than_in_training(name):
    family = small(name)
    index = torch.arange(500)
    z = family.start(torch.zeros_like(index), index, family.one_hot(index % 10), torch.zeros(500, 0))
    assert family.config.truncation < 1
    assert z.std().item() == pytest.approx(family.config.truncation, rel=0.02)
    seen = []
    family.generate = lambda z, _: seen.append(z)
    family.generated(family.one_hot(index % 10))
    assert seen[0].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_that_draws_is_an_average(name):
    assert families.get(name).recipe.ema > 0
