"""Gradients of critics whose gradients are known."""

import pytest
import torch

from models.losses import r1_r2_penalties, squared_gradient


def test_a_linear_critic_has_the_square_of_its_slope_everywhere():
    slope = torch.randn(784)
    x = torch.randn(3, 1, 28, 28)
    found = squared_gradient(lambda part: part.flatten(1) @ slope, x)
    assert found.tolist() == pytest.approx([float(slope.square().sum())] * 3, rel=1e-5)


def test_a_quadratic_critic_has_another_at_every_point():
    x = torch.randn(5, 2)
    found = squared_gradient(lambda part: part.square().sum(1), x)
    torch.testing.assert_close(found, 4 * x.square().sum(1))


def test_the_critic_learns_from_it():
    scale = torch.tensor(3.0, requires_grad=True)
    squared_gradient(lambda part: scale * part[:, 0], torch.randn(4, 2)).mean().backward()
    assert scale.grad == pytest.approx(6.0)


def test_both_slopes_come_from_the_same_share_of_each_side():
    seen = []
    x, generated = torch.full((8, 2), 3.0), torch.full((8, 2), 5.0)
    found = r1_r2_penalties(lambda part: seen.append(len(part)) or part.square().sum(1), x, generated, share=0.25)
    assert seen == [2, 2]
    assert [value.item() for value in found] == pytest.approx([4 * 18, 4 * 50])
