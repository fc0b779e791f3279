"""Expectation and maximisation against what is known of it."""

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
    """Points around three centres in unequal shares, and which."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    return CENTRES[which] + 0.5 * torch.randn(n, 2, generator=generator), which


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5), components=st.integers(1, 6))
def test_the_objective_never_falls(seed, size, components):
    x = torch.randn(200, size, generator=torch.Generator().manual_seed(seed)) ** 3
    found = mixture.fit(x, components, tolerance=-math.inf, iterations=30, seed=seed)
    assert float(torch.tensor(found.objectives, dtype=torch.float64).diff().min()) > -1e-9


def test_without_a_prior_that_is_the_likelihood():
    x, _ = clusters()
    runs = [mixture.fit(x, 4, prior=0, tolerance=-math.inf, iterations=count) for count in range(1, 20)]
    likelihoods = torch.stack([found.log_density(x.double()).mean() for found in runs])
    torch.testing.assert_close(likelihoods, torch.tensor(runs[-1].objectives, dtype=torch.float64))
    assert float(likelihoods.diff().min()) > -1e-12
    assert likelihoods[-1] > likelihoods[0]


def test_three_clusters_are_found_with_their_shares_and_shapes():
    x, which = clusters(3000)
    found = mixture.fit(x, 3)
    order = torch.cdist(CENTRES.double(), found.means).argmin(1)
    torch.testing.assert_close(found.means[order], CENTRES.double(), atol=0.1, rtol=0)
    share = torch.bincount(which) / len(which)
    torch.testing.assert_close(found.weights[order], share.double(), atol=0.01, rtol=0)
    covariances = found.cholesky @ found.cholesky.mT
    torch.testing.assert_close(covariances[order], 0.25 * torch.eye(2).double().expand(3, 2, 2), atol=0.05, rtol=0)


def test_the_density_is_scikit_learn_s_for_the_same_mixture():
    x, _ = clusters()
    found = mixture.fit(x, 3)
    reference = GaussianMixture(3)
    reference.weights_, reference.means_ = found.weights.numpy(), found.means.numpy()
    reference.precisions_cholesky_ = torch.linalg.inv(found.cholesky).mT.numpy()
    expected = reference.score_samples(x.double().numpy())
    assert found.log_density(x.double()).tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert found.bic(x.double()) == pytest.approx(reference.bic(x.double().numpy()), rel=1e-9)


def test_bic_finds_how_many_there_are():
    x, _ = clusters()
    assert len(mixture.fit_best(x, (1, 2, 3, 4, 6)).weights) == 3


def test_more_components_than_points_are_survived():
    found = mixture.fit(torch.tensor([[0.0], [0.0], [1.0]]), 5)
    assert found.log_density(torch.tensor([[0.5]]).double()).isfinite().all()


def test_draws_have_the_mixture_s_shares_means_and_covariances():
    x, _ = clusters(3000)
    found = mixture.fit(x, 3)
    room = Mixture(8, 2)
    room.load_fit(found)
    generator = torch.Generator().manual_seed(1)
    drawn = room.sample(torch.rand(40_000, generator=generator).double(), torch.randn(40_000, 2, generator=generator))
    nearest = torch.cdist(drawn.double(), found.means).argmin(1)
    torch.testing.assert_close(torch.bincount(nearest) / 40_000, found.weights.float(), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(x.T), atol=0.15, rtol=0)


def test_only_components_that_have_a_share_are_drawn():
    room = Mixture(4, 2)
    room.load_fit(mixture.fit(clusters()[0], 3))
    choice, eps = torch.linspace(1e-9, 1 - 1e-9, 1001, dtype=torch.float64), torch.zeros(1001, 2)
    for k in range(3):
        share = torch.zeros(4)
        share[k] = 0.1
        assert torch.equal(room.sample(choice, eps, share), room.means[k].expand(1001, 2))


def test_a_class_that_was_never_seen_is_drawn_as_any():
    x, which = clusters()
    room = LabelledMixture(2, 2, 4)
    room.fit(x, which)
    label = torch.eye(4)
    assert torch.equal(room.component_weights(label)[3], room.weights)
    assert (room.component_weights(label)[:3].sum(1) < 1).all()


def test_points_that_are_all_the_same_are_survived():
    found = mixture.fit(torch.ones(10, 2), 2)
    assert found.log_density(torch.ones(1, 2).double()).isfinite().all()
