"""The kernel density estimate against scikit-learn's, and its bandwidth against others."""

import math

import pytest
import torch
from sklearn.neighbors import KernelDensity

from models import store
from models.base import sample
from models.families.kde import KDE, KDEConfig
from tests.conftest import assert_weights_reach, manifest_of


def fitted(x, **config):
    family = KDE(KDEConfig(**config), tuple(x.shape[1:]), 0)
    family.fit(x, torch.zeros(len(x), dtype=torch.int64))
    return family.for_sampling()


def two_clusters(n, size):
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(2, (n, 1), generator=generator) * 2 - 1
    return 0.4 * side + 0.1 * torch.randn(n, size, generator=generator)


@pytest.mark.parametrize("size", [1, 2])
def test_the_density_equals_that_of_scikit_learn(size):
    family = fitted(two_clusters(600, size), points=500)
    centres = family.points[: int(family.count)].double().numpy()
    reference = KernelDensity(bandwidth=float(family.bandwidth), rtol=1e-12, atol=0).fit(centres)
    points = torch.linspace(-1, 1, 50)[:, None].expand(-1, size).contiguous()
    expected = reference.score_samples(points.double().numpy())
    assert family.log_density(points).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_density_of_principal_components_equals_that_of_scikit_learn():
    x = torch.rand(400, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    family = fitted(x, points=300, code=10)
    centres = family.points[: int(family.count)].double().numpy()
    assert centres.shape == (300, 10)
    reference = KernelDensity(bandwidth=float(family.bandwidth), rtol=1e-12, atol=0).fit(centres)
    codes = family.encode(x[:50], torch.zeros(50, 0))
    assert family.log_density(codes).tolist() == pytest.approx(
        reference.score_samples(codes.double().numpy()), abs=1e-6
    )


def test_the_density_integrates_to_one():
    family = fitted(two_clusters(300, 1), points=200)
    points = torch.linspace(-2, 2, 8001)[:, None]
    assert float(torch.trapezoid(family.log_density(points).exp(), points[:, 0].double())) == pytest.approx(1, abs=1e-4)


def test_the_bandwidth_maximises_the_likelihood_of_held_out_points():
    x = two_clusters(2000, 1)
    family = fitted(x, points=1500, held_out=400)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out = x[order[:400]]
    chosen, best = float(family.bandwidth), float(family.log_density(held_out).mean())
    for factor in (0.5, 0.8, 0.95, 1.05, 1.25, 2):
        family.bandwidth.fill_(chosen * factor)
        assert float(family.log_density(held_out).mean()) < best


def test_samples_follow_the_density():
    family = fitted(two_clusters(1000, 1), points=800, spread=1.0)
    index = torch.arange(20_000)
    samples = sample(family, torch.zeros_like(index), index, torch.zeros(len(index), 0), steps=1)[:, 0]
    edges = torch.linspace(-0.8, 0.8, 17)
    share = torch.histogram(samples, edges).hist / len(samples)
    fine = torch.linspace(-0.8, 0.8, 16 * 50 + 1)[:, None]
    density = family.log_density(fine).exp()
    expected = [float(torch.trapezoid(density[i * 50 : i * 50 + 51], dx=0.1 / 50)) for i in range(16)]
    assert share.tolist() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(samples)))


def test_the_noise_of_a_sample_is_the_bandwidth_times_the_spread():
    family = fitted(two_clusters(1000, 1), points=800, spread=0.5)
    family.points.zero_()
    index = torch.arange(5000)
    z = family.initial_state(torch.zeros_like(index), index, torch.zeros(5000, 0), torch.zeros(5000, 0))
    assert float(z.std()) == pytest.approx(0.5 * float(family.bandwidth), rel=0.05)


def test_weights_of_the_default_config_are_under_6_mb(tmp_path):
    family = KDE(KDEConfig()).for_sampling()
    store.save(tmp_path / "kde", family, manifest_of(family), b"")
    assert (tmp_path / "kde" / store.TENSORS).stat().st_size < 6e6


def test_committed_weights_reach_their_goals():
    assert_weights_reach("kde", mnist_cnn_fd=0.91, recall=0.45, coverage=0.45)
