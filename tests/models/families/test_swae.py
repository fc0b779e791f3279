"""The sliced-Wasserstein distance against that of POT."""

import ot
import pytest
import torch
from torch.nn import functional as F

from models.families.swae import SWAE, SWAEConfig, sliced_wasserstein
from tests.conftest import assert_weights_reach


@pytest.mark.parametrize("size", [2, 16])
def test_the_distance_equals_that_of_pot(size):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(100, size, generator=generator, dtype=torch.float64)
    b = 1.5 * torch.randn(100, size, generator=generator, dtype=torch.float64) + 1
    theta = F.normalize(torch.randn(size, 300, generator=generator, dtype=torch.float64), dim=0)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=theta.numpy()) ** 2
    assert float(sliced_wasserstein(a, b, theta)) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_a_shifted_cloud_is_the_shift():
    a = torch.randn(50, 3)
    theta = torch.eye(3)
    shift = torch.tensor([3.0, 0.0, 0.0])
    assert float(sliced_wasserstein(a, a + shift, theta)) == pytest.approx(3.0, rel=1e-5)  # 9 in one of three


def test_gradient_descent_moves_codes_onto_the_prior():
    torch.manual_seed(0)
    z = (0.2 * torch.randn(256, 4) + 2).requires_grad_(True)
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(200):
        loss = sliced_wasserstein(z, torch.randn(256, 4), F.normalize(torch.randn(4, 200), dim=0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert z.mean(0).abs().max().item() < 0.2
    assert z.std(0).tolist() == pytest.approx([1] * 4, abs=0.2)


def test_the_loss_uses_several_hundred_directions():
    assert SWAEConfig().projections >= 200
    terms = SWAE(SWAEConfig(width=8)).loss("self", torch.rand(8, 1, 28, 28) * 2 - 1, torch.zeros(8))
    expected = terms["reconstruction"] + SWAEConfig().weight * terms["sliced_wasserstein"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_committed_weights_reach_their_goals():
    assert_weights_reach("swae", mnist_cnn_fd=0.6, precision=0.8, recall=0.7, coverage=0.8)
