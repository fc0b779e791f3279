"""Rectified flow against Gaussians with a known flow."""

import pytest
import torch
from torch import nn

from models.base import Rows, invert, sample
from models.families.flow import Flow, FlowConfig
from models.losses import MIN_REMAINING_TIME
from tests.conftest import assert_weights_reach

MEAN, STD = -0.3, 0.15


class GaussianFlow(nn.Module):
    """The exact prediction E[x | x_t] for x ~ N(m, s^2)."""

    def forward(self, x, time, label):
        t = time.view(-1, 1, 1, 1)
        variance = t**2 * STD**2 + (1 - t) ** 2
        return MEAN + t * STD**2 / variance * (x - t * MEAN)


@pytest.fixture
def flow():
    family = Flow(FlowConfig(width=8)).for_sampling()
    family.unet = GaussianFlow()
    return family


def samples(flow, steps, sampler):
    index = torch.arange(16)
    return sample(flow, torch.zeros_like(index), index, torch.zeros(16, 10), steps=steps, sampler=sampler)


@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("heun", 41), ("euler", 100)])
@torch.inference_mode()
def test_samples_of_a_gaussian_have_its_mean_and_variance(flow, sampler, steps):
    x = samples(flow, steps, sampler)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=0.05)


@torch.inference_mode()
def test_heun_is_of_second_order_and_euler_of_first_order(flow):
    limit = samples(flow, 1000, "heun")
    for sampler, ratio in (("euler", 2), ("heun", 4)):
        coarse, fine = ((samples(flow, steps, sampler) - limit).abs().mean() for steps in (40, 80))
        assert float(coarse / fine) == pytest.approx(ratio, rel=0.3)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_a_straight_flow_is_exact_for_any_number_of_steps(flow, sampler, steps):
    class Straight(nn.Module):
        def forward(self, x, time, label):
            return torch.full_like(x, 0.25)

    flow.unet = Straight()
    x = samples(flow, steps, sampler)
    torch.testing.assert_close(x, torch.full_like(x, 0.25))


@pytest.mark.parametrize("sampler", ["heun", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
def test_every_call_of_the_net_is_at_the_state_of_its_time(flow, sampler, steps):
    # If all paths lead straight to one image, x_t is on the line to it at every time.
    calls = []

    class Straight(nn.Module):
        def forward(self, x, time, label):
            calls.append((x[:2], time[:2].view(-1, 1, 1, 1)))
            return torch.full_like(x, 0.25)

    flow.unet = Straight()
    samples(flow, steps, sampler)
    eps = calls[0][0]
    assert len(calls) == steps
    for x, t in calls:
        torch.testing.assert_close(x, torch.lerp(eps, torch.full_like(eps, 0.25), t))


@pytest.mark.parametrize("sampler", ["heun", "euler"])
@torch.inference_mode()
def test_noised_data_are_the_states_of_chains_that_lead_to_them(flow, sampler):
    class Straight(nn.Module):
        def forward(self, x, time, label):
            return torch.full_like(x, 0.25)

    flow.unet = Straight()
    eps, x, label = torch.randn(4, 1, 28, 28), torch.full((4, 1, 28, 28), 0.25), torch.zeros(4, 10)
    ones, zero = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    state = torch.cat((eps, eps), dim=1)
    for k, line in enumerate(flow.schedule(9, sampler)):
        coefficients = line.expand(4, -1)
        noised = flow.noised(x, coefficients, eps)
        torch.testing.assert_close(noised[:, :1], state[:, :1])
        if line[2] == 0:  # the step continues from the memory
            torch.testing.assert_close(noised, state)
        after = flow.step(Rows(state, label, coefficients, ones, zero, zero, zero))
        torch.testing.assert_close(flow.predicted(state, after, coefficients), x, atol=1e-5, rtol=0)
        assert k or torch.equal(noised[:, :1], eps), "a chain starts at noise alone"
        state = after


class LabelPlus(nn.Module):
    """Predicts 0.1 without a label, and 0.3 with one."""

    def forward(self, x, time, label):
        return torch.full_like(x, 0.1) + 0.2 * label.sum(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 0.1), (1.0, 0.3), (2.5, 0.6)])
def test_guidance_extrapolates_from_the_unlabelled_to_the_labelled_prediction(flow, guidance, expected):
    flow.unet = LabelPlus()
    index = torch.arange(4)
    label = flow.one_hot(index)
    x = sample(flow, torch.zeros_like(index), index, label, steps=3, guidance=guidance)
    torch.testing.assert_close(x, torch.full_like(x, expected))


def test_labels_are_dropped_with_the_configured_probability():
    family = Flow(FlowConfig(width=8, drop_label=0.25))
    labels = []
    family.unet.forward = lambda x, _, label: labels.append(label) or x
    family.loss("self", torch.zeros(4000, 1, 28, 28), torch.full((4000,), 3))
    assert float((labels[0].sum(1) == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert (labels[0][labels[0].sum(1) > 0] == family.one_hot(torch.tensor([3]))).all()


def test_the_loss_is_the_squared_error_of_the_velocity():
    family = Flow(FlowConfig(width=8))
    inputs = []
    family.unet.forward = lambda x, time, _: inputs.append((x, time.view(-1, 1, 1, 1))) or torch.full_like(x, 0.2)
    x = torch.rand(512, 1, 28, 28) * 2 - 1
    torch.manual_seed(3)
    loss = float(family.loss("self", x, torch.zeros(512, dtype=torch.int64))["loss"])
    x_t, t = inputs[0]
    velocity, predicted = (x - x_t) / (1 - t), (0.2 - x_t) / (1 - t)
    errors = (predicted - velocity).square().mean((1, 2, 3))
    clean = (1 - t).flatten() < MIN_REMAINING_TIME
    weight = torch.where(clean, ((1 - t).flatten() / MIN_REMAINING_TIME) ** 2, 1.0)
    assert loss == pytest.approx(float((weight * errors).mean()), rel=1e-3)
    assert 0.02 < float(clean.float().mean()) < 0.15


@torch.inference_mode()
def test_sampling_from_the_inverted_state_reconstructs_the_image(flow):
    x = MEAN + STD * torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(4, 10)
    state = invert(flow, x, label)
    assert state[:, :1].std().item() == pytest.approx(1, rel=0.1)
    ones, zero = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    for coefficients in flow.schedule(40, "heun"):
        state = flow.step(Rows(state, label, coefficients * ones, ones[:, 0], zero, zero, zero))
    assert (flow.decode(state) - x).abs().mean().item() < 0.1 * STD


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "flow", mnist_cnn_fd=0.18, precision=0.87, recall=0.85, coverage=0.87, accuracy=0.985, worst_digit=0.96
    )
