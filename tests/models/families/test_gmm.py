"""The Gaussian mixture samples the given class."""

from functools import partial

import pytest
import torch

from models import mixture, store
from models.base import sample
from models.families.gmm import GMM, GMMConfig
from tests.conftest import assert_weights_reach, manifest_of


@pytest.fixture(scope="module")
def family():
    """Three classes of points in the plane: one cluster, two clusters, and one rare cluster."""
    generator = torch.Generator().manual_seed(0)
    label = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 4000, replacement=True, generator=generator)
    side = torch.randint(2, (4000,), generator=generator) * 2 - 1
    middle = torch.stack((0.5 * label - 0.5, torch.where(label == 1, 0.5 * side, 0)), dim=1)
    x = middle + 0.05 * torch.randn(4000, 2, generator=generator)
    family = GMM(GMMConfig(most=4, pooled=0), (2,), 3)
    family.fit(x, label)
    return family


def samples(family, label, count=2000):
    index = torch.arange(count)
    return sample(family, torch.zeros_like(index), index, label.expand(count, -1), steps=1)


def test_by_bic_every_class_has_one_component_per_cluster(family):
    assert torch.bincount(family.mixture.owner[family.mixture.owner >= 0]).tolist() == [1, 2, 1]


@pytest.mark.parametrize("digit", [0, 1, 2])
def test_samples_are_of_the_given_class(family, digit):
    x = samples(family, family.one_hot(torch.tensor([digit])))
    assert float((x[:, 0] - (0.5 * digit - 0.5)).abs().max()) < 0.25
    assert (float(x[:, 1].abs().mean()) > 0.4) == (digit == 1)


def test_without_a_label_classes_have_their_share_of_the_training_data(family):
    x = samples(family, torch.zeros(1, 3), 10_000)
    share = torch.bincount((x[:, 0] * 2 + 1).round().long().clamp(0, 2)) / len(x)
    assert share.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_without_classes_there_is_one_mixture():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    family = GMM(GMMConfig(most=2), (2,), 0)
    family.fit(x, torch.full((500,), -1))
    assert torch.cov(samples(family, torch.zeros(1, 0)).T).diagonal().tolist() == pytest.approx([0.04, 0.04], rel=0.15)


def test_the_log_likelihood_is_the_density_of_all_classes_together(family):
    side = torch.linspace(-1.5, 1.5, 301)
    points = torch.cartesian_prod(side, side)
    density = family.log_likelihood(points, torch.zeros(len(points), 3)).exp().view(301, 301)
    assert float(density.sum()) * 0.01**2 == pytest.approx(1, abs=1e-3)
    middle = float(density[:, 130:171].sum() * 0.01**2)  # without the two clusters of the second class
    assert middle == pytest.approx(0.7, abs=0.03)


def test_weights_of_the_default_config_are_under_6_mb(tmp_path):
    family = GMM(GMMConfig()).for_sampling()
    store.save(tmp_path / "gmm", family, manifest_of(family), b"")
    assert (tmp_path / "gmm" / store.TENSORS).stat().st_size < 6e6


@pytest.mark.parametrize("pooled", [0.0, 8.0])
def test_covariances_are_pooled_as_the_configuration_says(pooled):
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    family = GMM(GMMConfig(most=4, pooled=pooled), (2,), 0)
    family.fit(x, torch.full((400,), -1))
    select = partial(mixture.fit_pooled, pooled=8.0) if pooled else mixture.fit_best
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    expected = select(x[order], (1, 2, 4))
    assert torch.equal(family.mixture.cholesky[: len(expected.weights)], expected.cholesky.float())


def test_committed_weights_reach_their_goals():
    assert_weights_reach("gmm", mnist_cnn_fd=0.73, recall=0.4, coverage=0.45, accuracy=0.98)
