"""The Gaussian mixture draws the digit it is asked for."""

import pytest
import torch

from models.base import sample
from models.families.gmm import GMM, GMMConfig


@pytest.fixture(scope="module")
def family():
    """Three classes of two numbers each: one hump, two humps, and a rare one."""
    generator = torch.Generator().manual_seed(0)
    label = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 4000, replacement=True, generator=generator)
    side = torch.randint(2, (4000,), generator=generator) * 2 - 1
    middle = torch.stack((0.5 * label - 0.5, torch.where(label == 1, 0.5 * side, 0)), dim=1)
    x = middle + 0.05 * torch.randn(4000, 2, generator=generator)
    family = GMM(GMMConfig(most=4), (2,), 3)
    family.fit(x, label)
    return family


def drawn(family, label, count=2000):
    index = torch.arange(count)
    return sample(family, torch.zeros_like(index), index, label.expand(count, -1), steps=1)


def test_every_class_has_the_components_it_needs(family):
    assert torch.bincount(family.mixture.owner[family.mixture.owner >= 0]).tolist() == [1, 2, 1]


@pytest.mark.parametrize("digit", [0, 1, 2])
def test_draws_are_of_the_class_that_is_asked_for(family, digit):
    x = drawn(family, family.one_hot(torch.tensor([digit])))
    assert float((x[:, 0] - (0.5 * digit - 0.5)).abs().max()) < 0.25
    assert (float(x[:, 1].abs().mean()) > 0.4) == (digit == 1)


def test_without_a_class_all_are_drawn_as_often_as_they_were_seen(family):
    x = drawn(family, torch.zeros(1, 3), 10_000)
    share = torch.bincount((x[:, 0] * 2 + 1).round().long().clamp(0, 2)) / len(x)
    assert share.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_without_labels_it_is_one_mixture():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    family = GMM(GMMConfig(most=2), (2,), 0)
    family.fit(x, torch.full((500,), -1))
    assert torch.cov(drawn(family, torch.zeros(1, 0)).T).diagonal().tolist() == pytest.approx([0.04, 0.04], rel=0.15)


def test_its_log_likelihood_is_the_density_of_all_its_classes_together(family):
    side = torch.linspace(-1.5, 1.5, 301)
    at = torch.cartesian_prod(side, side)
    density = family.log_likelihood(at, torch.zeros(len(at), 3)).exp().view(301, 301)
    assert float(density.sum()) * 0.01**2 == pytest.approx(1, abs=1e-3)
    middle = float(density[:, 130:171].sum() * 0.01**2)  # the two humps of the second class lie outside
    assert middle == pytest.approx(0.7, abs=0.03)
