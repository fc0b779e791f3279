"""Rectified flow against Gaussians whose flow is known."""

import pytest
import torch
from torch import nn

from models.base import Rows, draw
from models.families.flow import Flow, FlowConfig

MEAN, STD = -0.3, 0.15


class GaussianFlow(nn.Module):
    """E[x | x_t] where x ~ N(m, s^2): the guess that training would find."""

    def forward(self, x, time, label):
        t = time.view(-1, 1, 1, 1)
        variance = t**2 * STD**2 + (1 - t) ** 2
        return MEAN + t * STD**2 / variance * (x - t * MEAN)


@pytest.fixture
def flow():
    family = Flow(FlowConfig(width=8)).for_sampling()
    family.unet = GaussianFlow()
    return family


def drawn(flow, steps, sampler):
    index = torch.arange(16)
    return draw(flow, torch.zeros_like(index), index, torch.zeros(16, 10), steps=steps, sampler=sampler)


@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("heun", 41), ("euler", 100)])
@torch.inference_mode()
def test_on_a_gaussian_mean_and_variance_come_out_right(flow, sampler, steps):
    x = drawn(flow, steps, sampler)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=0.05)


@torch.inference_mode()
def test_heun_is_of_second_order_and_euler_of_first(flow):
    limit = drawn(flow, 1000, "heun")
    for sampler, falls in (("euler", 2), ("heun", 4)):
        coarse, fine = ((drawn(flow, steps, sampler) - limit).abs().mean() for steps in (40, 80))
        assert float(coarse / fine) == pytest.approx(falls, rel=0.3)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_a_straight_flow_arrives_whatever_the_steps(flow, sampler, steps):
    class Straight(nn.Module):
        def forward(self, x, time, label):
            return torch.full_like(x, 0.25)

    flow.unet = Straight()
    x = drawn(flow, steps, sampler)
    torch.testing.assert_close(x, torch.full_like(x, 0.25))


@torch.inference_mode()
def test_inversion_leads_back_to_the_image(flow):
    x = MEAN + STD * torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(4, 10)
    state = flow.encode(x, label)
    assert state[:, :1].std().item() == pytest.approx(1, rel=0.1)
    line, zero = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    for link in flow.plan(40, "heun"):
        state = flow.step(Rows(state, label, link * line, line[:, 0], zero, zero, zero))
    assert (flow.decode(state) - x).abs().mean().item() < 0.1 * STD


def test_its_loss_is_least_for_the_guess_it_should_learn():
    family = Flow(FlowConfig(width=8))
    x = MEAN + STD * torch.randn(256, 1, 28, 28)
    losses = []
    for wrong in (0.0, 0.2, -0.2):
        family.unet.forward = lambda *args, wrong=wrong: GaussianFlow()(*args) + wrong
        torch.manual_seed(0)
        losses.append(float(family.loss("self", x, torch.zeros(256, dtype=torch.int64))["loss"]))
    assert losses[0] == min(losses)
