"""Gradient penalties of critics with known gradients."""

import pytest
import torch

from models.losses import r1_r2_penalties, squared_gradient


def test_the_squared_gradient_of_a_linear_critic_is_constant():
    slope = torch.randn(784)
    x = torch.randn(3, 1, 28, 28)
    squared = squared_gradient(lambda part: part.flatten(1) @ slope, x)
    assert squared.tolist() == pytest.approx([float(slope.square().sum())] * 3, rel=1e-5)


def test_the_squared_gradient_of_a_quadratic_critic_depends_on_the_point():
    x = torch.randn(5, 2)
    squared = squared_gradient(lambda part: part.square().sum(1), x)
    torch.testing.assert_close(squared, 4 * x.square().sum(1))


def test_the_squared_gradient_is_differentiable_in_the_critic():
    scale = torch.tensor(3.0, requires_grad=True)
    squared_gradient(lambda part: scale * part[:, 0], torch.randn(4, 2)).mean().backward()
    assert scale.grad == pytest.approx(6.0)


def test_both_penalties_use_the_same_share_of_each_batch():
    sizes = []
    x, generated = torch.full((8, 2), 3.0), torch.full((8, 2), 5.0)
    penalties = r1_r2_penalties(lambda part: sizes.append(len(part)) or part.square().sum(1), x, generated, share=0.25)
    assert sizes == [2, 2]
    assert [penalty.item() for penalty in penalties] == pytest.approx([4 * 18, 4 * 50])
