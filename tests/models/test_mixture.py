"""Expectation maximisation against known results."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from models import mixture
from models.mixture import LabelledMixture, Mixture

CENTRES = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


def clusters(n=600, seed=0):
    """Points around three centres in unequal shares, and the index of each point's centre."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    return CENTRES[centre] + 0.5 * torch.randn(n, 2, generator=generator), centre


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5), components=st.integers(1, 6))
def test_the_objective_never_decreases(seed, size, components):
    x = torch.randn(200, size, generator=torch.Generator().manual_seed(seed)) ** 3
    fit = mixture.fit(x, components, tolerance=-math.inf, iterations=30, seed=seed)
    assert float(torch.tensor(fit.objectives, dtype=torch.float64).diff().min()) > -1e-9


def test_without_a_prior_the_objective_is_the_likelihood():
    x, _ = clusters()
    fits = [mixture.fit(x, 4, prior=0, tolerance=-math.inf, iterations=count) for count in range(1, 20)]
    likelihoods = torch.stack([fit.log_density(x.double()).mean() for fit in fits])
    torch.testing.assert_close(likelihoods, torch.tensor(fits[-1].objectives, dtype=torch.float64))
    assert float(likelihoods.diff().min()) > -1e-12
    assert likelihoods[-1] > likelihoods[0]


def test_em_recovers_the_weights_means_and_covariances_of_three_clusters():
    x, centre = clusters(3000)
    fit = mixture.fit(x, 3)
    order = torch.cdist(CENTRES.double(), fit.means).argmin(1)
    torch.testing.assert_close(fit.means[order], CENTRES.double(), atol=0.1, rtol=0)
    share = torch.bincount(centre) / len(centre)
    torch.testing.assert_close(fit.weights[order], share.double(), atol=0.01, rtol=0)
    covariances = fit.cholesky @ fit.cholesky.mT
    torch.testing.assert_close(covariances[order], 0.25 * torch.eye(2).double().expand(3, 2, 2), atol=0.05, rtol=0)


def test_the_density_equals_that_of_scikit_learn():
    x, _ = clusters()
    fit = mixture.fit(x, 3)
    reference = GaussianMixture(3)
    reference.weights_, reference.means_ = fit.weights.numpy(), fit.means.numpy()
    reference.precisions_cholesky_ = torch.linalg.inv(fit.cholesky).mT.numpy()
    expected = reference.score_samples(x.double().numpy())
    assert fit.log_density(x.double()).tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert fit.bic(x.double()) == pytest.approx(reference.bic(x.double().numpy()), rel=1e-9)


def test_bic_finds_the_number_of_clusters():
    x, _ = clusters()
    assert len(mixture.fit_best(x, (1, 2, 3, 4, 6)).weights) == 3


@pytest.mark.parametrize(("count", "components"), [(600, 8), (31, 4), (16, 4), (15, 2), (3, 1)])
def test_pooled_mixtures_have_as_many_components_as_their_points_suffice_for(count, components):
    fit = mixture.fit_pooled(clusters()[0][:count], (1, 2, 4, 8), pooled=4)
    assert len(fit.weights) == components
    assert fit.cholesky.isfinite().all()


def test_steps_of_k_means_start_em_at_the_means_of_the_nearest_points():
    x, _ = clusters()
    start = mixture.fit(x, 3, iterations=1, lloyd=30, prior=0)
    nearest = torch.cdist(x.double(), start.means).argmin(1)
    expected = torch.stack([x[nearest == k].double().mean(0) for k in range(3)])
    torch.testing.assert_close(start.means, expected)


def test_pooled_covariances_describe_new_points_better_where_a_component_has_few():
    generator = torch.Generator().manual_seed(0)
    shape = torch.linspace(0.1, 1, 20)
    middle = 4 * torch.randn(8, 20, generator=generator)

    def points(count):
        return middle[torch.arange(count) % 8] + shape * torch.randn(count, 20, generator=generator)

    x, new = points(8 * 30), points(2000).double()
    alone, averaged, equal = (mixture.fit(x, 8, pooled=pooled) for pooled in (0.0, 20.0, 1e9))
    assert float(averaged.log_density(new).mean()) > float(alone.log_density(new).mean()) + 1
    deviations = (equal.cholesky @ equal.cholesky.mT).diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(deviations, deviations[:1].expand(8, -1))
    assert not torch.allclose(alone.cholesky[0], alone.cholesky[1], rtol=0.05)


def test_a_fit_with_more_components_than_points_is_finite():
    fit = mixture.fit(torch.tensor([[0.0], [0.0], [1.0]]), 5)
    assert fit.log_density(torch.tensor([[0.5]]).double()).isfinite().all()


def test_samples_have_the_weights_means_and_covariances_of_the_mixture():
    x, _ = clusters(3000)
    fit = mixture.fit(x, 3)
    stored = Mixture(8, 2)
    stored.load_fit(fit)
    generator = torch.Generator().manual_seed(1)
    choice, eps = torch.rand(40_000, generator=generator).double(), torch.randn(40_000, 2, generator=generator)
    samples = stored.sample(choice, eps)
    nearest = torch.cdist(samples.double(), fit.means).argmin(1)
    torch.testing.assert_close(torch.bincount(nearest) / 40_000, fit.weights.float(), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(samples.T), torch.cov(x.T), atol=0.15, rtol=0)


def test_only_components_with_a_weight_are_sampled():
    stored = Mixture(4, 2)
    stored.load_fit(mixture.fit(clusters()[0], 3))
    choice, eps = torch.linspace(1e-9, 1 - 1e-9, 1001, dtype=torch.float64), torch.zeros(1001, 2)
    for k in range(3):
        weights = torch.zeros(4)
        weights[k] = 0.1
        assert torch.equal(stored.sample(choice, eps, weights), stored.means[k].expand(1001, 2))


def test_a_class_without_training_data_is_sampled_from_all_components():
    x, centre = clusters()
    stored = LabelledMixture(2, 2, 4)
    stored.fit(x, centre)
    label = torch.eye(4)
    assert torch.equal(stored.component_weights(label)[3], stored.weights)
    assert (stored.component_weights(label)[:3].sum(1) < 1).all()


def test_a_fit_to_identical_points_is_finite():
    fit = mixture.fit(torch.ones(10, 2), 2)
    assert fit.log_density(torch.ones(1, 2).double()).isfinite().all()
