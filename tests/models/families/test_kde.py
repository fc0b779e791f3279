"""The kernel density against scikit-learn's, and its bandwidth against the best there is."""

import math

import pytest
import torch
from sklearn.neighbors import KernelDensity

from models import store
from models.base import sample
from models.families.kde import KDE, KDEConfig
from tests.conftest import manifest_of


def fitted(x, **config):
    family = KDE(KDEConfig(**config), tuple(x.shape[1:]), 0)
    family.fit(x, torch.zeros(len(x), dtype=torch.int64))
    return family.for_sampling()


def two_humps(n, size):
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(2, (n, 1), generator=generator) * 2 - 1
    return 0.4 * side + 0.1 * torch.randn(n, size, generator=generator)


@pytest.mark.parametrize("size", [1, 2])
def test_its_density_is_scikit_learn_s(size):
    family = fitted(two_humps(600, size), points=500)
    kept = family.points[: int(family.count)].double().numpy()
    reference = KernelDensity(bandwidth=float(family.bandwidth), rtol=1e-12, atol=0).fit(kept)
    at = torch.linspace(-1, 1, 50)[:, None].expand(-1, size).contiguous()
    assert family.log_density(at).tolist() == pytest.approx(reference.score_samples(at.double().numpy()), abs=1e-6)


def test_its_density_in_principal_components_is_scikit_learn_s():
    x = torch.rand(400, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    family = fitted(x, points=300, code=10)
    kept = family.points[: int(family.count)].double().numpy()
    assert kept.shape == (300, 10)
    reference = KernelDensity(bandwidth=float(family.bandwidth), rtol=1e-12, atol=0).fit(kept)
    codes = family.encode(x[:50], torch.zeros(50, 0))
    assert family.log_density(codes).tolist() == pytest.approx(
        reference.score_samples(codes.double().numpy()), abs=1e-6
    )


def test_its_density_integrates_to_one():
    family = fitted(two_humps(300, 1), points=200)
    at = torch.linspace(-2, 2, 8001)[:, None]
    assert float(torch.trapezoid(family.log_density(at).exp(), at[:, 0].double())) == pytest.approx(1, abs=1e-4)


def test_its_bandwidth_is_the_one_under_which_held_out_points_are_likeliest():
    x = two_humps(2000, 1)
    family = fitted(x, points=1500, held_out=400)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out = x[order[:400]]
    chosen, best = float(family.bandwidth), float(family.log_density(held_out).mean())
    for factor in (0.5, 0.8, 0.95, 1.05, 1.25, 2):
        family.bandwidth.fill_(chosen * factor)
        assert float(family.log_density(held_out).mean()) < best


def test_its_draws_follow_its_density():
    family = fitted(two_humps(1000, 1), points=800, spread=1.0)
    index = torch.arange(20_000)
    drawn = sample(family, torch.zeros_like(index), index, torch.zeros(len(index), 0), steps=1)[:, 0]
    edges = torch.linspace(-0.8, 0.8, 17)
    share = torch.histogram(drawn, edges).hist / len(drawn)
    middles = (edges[1:] + edges[:-1]) / 2
    fine = torch.linspace(-0.8, 0.8, 16 * 50 + 1)[:, None]
    mass = family.log_density(fine).exp()
    expected = [float(torch.trapezoid(mass[i * 50 : i * 50 + 51], dx=0.1 / 50)) for i in range(len(middles))]
    assert share.tolist() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(drawn)))


def test_the_noise_of_a_draw_is_the_bandwidth_times_the_spread():
    family = fitted(two_humps(1000, 1), points=800, spread=0.5)
    family.points.zero_()
    index = torch.arange(5000)
    z = family.initial_state(torch.zeros_like(index), index, torch.zeros(5000, 0), torch.zeros(5000, 0))
    assert float(z.std()) == pytest.approx(0.5 * float(family.bandwidth), rel=0.05)


def test_its_weights_are_under_3_mb_as_they_are_set(tmp_path):
    family = KDE(KDEConfig()).for_sampling()
    store.save(tmp_path / "kde", family, manifest_of(family), b"")
    assert (tmp_path / "kde" / store.TENSORS).stat().st_size < 3e6
