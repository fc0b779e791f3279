"""PCA against the singular value decomposition."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from models.base import sample
from models.families.pca import PCA, PCAConfig
from models.pixels import to_unit
from tests.conftest import assert_weights_reach
from training import data


@pytest.fixture(scope="module")
def x():
    """The digits that need no download."""
    return to_unit(data.load("digits", options=data.Options(size=(28, 28))).images)


@pytest.fixture(scope="module")
def pca(x):
    family = PCA(PCAConfig(code=20))
    family.fit(x, torch.zeros(len(x), dtype=torch.int64))
    return family.for_sampling()


def test_directions_equal_those_of_the_svd(pca, x):
    flat = x.flatten(1).double()
    _, values, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    expected = directions[:20].T
    signs = (expected * pca.components.W).sum(0).sign()
    torch.testing.assert_close(pca.components.W.double(), expected * signs, atol=1e-5, rtol=0)
    variance = values[:20].square() / (len(x) - 1)
    torch.testing.assert_close(pca.components.variance.double(), variance, atol=1e-5, rtol=1e-5)


def test_directions_are_orthonormal(pca):
    torch.testing.assert_close(pca.components.W.T @ pca.components.W, torch.eye(20), atol=1e-5, rtol=0)


def test_the_reconstruction_error_is_the_variance_of_the_other_directions(pca, x):
    codes = pca.encode(x, torch.zeros(len(x), 0))
    reconstruction = pca.components.decode(codes).unflatten(1, (1, 28, 28))
    flat = x.flatten(1).double()
    total = (flat - flat.mean(0)).square().sum() / (len(x) - 1)
    error = (x - reconstruction).double().square().sum() / (len(x) - 1)
    assert float(error) == pytest.approx(float(total - pca.components.variance.double().sum()), rel=1e-4)


def test_sampled_codes_have_the_variance_of_the_codes_of_data(pca):
    index = torch.arange(20_000)
    z = pca.initial_state(torch.zeros_like(index), index, torch.zeros(len(index), 0), torch.zeros(len(index), 0))
    assert (z.var(0) / pca.components.variance).tolist() == pytest.approx([1.0] * 20, rel=0.05)


def test_samples_of_points_have_the_mean_and_covariance_of_the_data():
    torch.manual_seed(0)
    mixing = torch.tensor([[0.2, 0.1], [0.0, 0.1]])
    x = torch.randn(5000, 2) @ mixing.T + 0.1
    family = PCA(PCAConfig(code=2), (2,), 0)
    family.fit(x, torch.zeros(5000, dtype=torch.int64))
    index = torch.arange(5000)
    samples = sample(family, torch.ones_like(index), index, torch.zeros(5000, 0), steps=1)
    torch.testing.assert_close(torch.cov(samples.T), torch.cov(x.T), atol=3e-3, rtol=0)
    torch.testing.assert_close(samples.mean(0), x.mean(0), atol=2e-2, rtol=0)


def test_the_log_likelihood_is_that_of_the_gaussian_of_the_codes(pca, x):
    codes = pca.encode(x, torch.zeros(len(x), 0))
    expected = MultivariateNormal(torch.zeros(20), torch.diag(pca.components.variance)).log_prob(codes)
    torch.testing.assert_close(pca.log_likelihood(x, torch.zeros(len(x), 0)), expected, rtol=1e-4, atol=1e-3)


def test_committed_weights_reach_their_goals():
    assert_weights_reach("pca", mnist_cnn_fd=15.0)


def test_large_pictures_have_nearly_the_exact_components():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(300, 12, generator=generator) * torch.linspace(8, 1, 12)
    x = (factors @ torch.randn(12, 3 * 48 * 64, generator=generator) / 100).view(300, 3, 48, 64)
    family = PCA(PCAConfig(code=12), x.shape[1:])
    before = torch.get_rng_state()
    family.fit(x, torch.zeros(300, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)
    flat = x.flatten(1).double()
    variance = torch.linalg.svdvals(flat - flat.mean(0))[:12].square() / 299
    torch.testing.assert_close(family.components.variance.double(), variance, rtol=1e-3, atol=1e-3)
    restored = family.decode(family.components.decode(family.encode(x, x)).unflatten(1, x.shape[1:]))
    assert (restored - x.clamp(-1, 1)).abs().max() < 0.02


def test_fewer_pictures_than_components_leave_the_others_at_zero():
    x = torch.rand(5, 3, 32, 32) * 2 - 1
    family = PCA(PCAConfig(code=20), (3, 32, 32))
    family.fit(x, torch.zeros(5, dtype=torch.int64))
    assert (family.components.variance > 0).sum() == 4
    assert not family.components.W[:, 4:].any()
