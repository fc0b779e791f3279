"""MeanFlow against Gaussians with a known flow, whose average velocity has a closed form."""

import math

import pytest
import torch
from torch import nn

from models import store
from models.base import sample
from models.families.meanflow import MIN_SPAN, PATH_STEPS, MeanFlow, MeanFlowConfig
from models.losses import MIN_REMAINING_TIME
from tests.conftest import WEIGHTS, assert_weights_reach
from training.start import copy_weights

MEAN, STD = -0.3, 0.15


class Gaussian(nn.Module):
    """Exact nets for x ~ N(m, s^2): its paths lead from x_s to m e + (x_s - m s) sigma_e / sigma_s at time e.

    sigma_t^2 = t^2 s^2 + (1 - t)^2. `shift` is what a label adds to the mean of the images.
    """

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift, self.calls = shift, []

    def forward(self, x, time, label):
        """The image that the velocity predicts."""
        self.calls.append((time, label))
        s, mean = self.column(time), self.mean(label)
        return mean + s * STD**2 / (s**2 * STD**2 + (1 - s) ** 2) * (x - s * mean)

    def average(self, x, time, span, label):
        """The image that the average velocity predicts."""
        s, e, mean = self.column(time), self.column(time + span), self.mean(label)
        end = mean * e + (x - s * mean) * ((e**2 * STD**2 + (1 - e) ** 2) / (s**2 * STD**2 + (1 - s) ** 2)).sqrt()
        return x + (1 - s) / (e - s) * (end - x)

    def mean(self, label):
        return MEAN + self.shift * self.column(label.sum(1))

    @staticmethod
    def column(values):
        return values.view(-1, 1, 1, 1)


@pytest.fixture
def meanflow():
    return family_of(Gaussian())


def family_of(exact, **config):
    """The family whose nets know the Gaussian."""
    family = MeanFlow(MeanFlowConfig(width=8, **config))
    family.velocity, family.predict = exact, exact.average
    return family


def samples(family, steps):
    index = torch.arange(16)
    return sample(family, torch.zeros_like(index), index, torch.zeros(16, 10), steps=steps)


@torch.inference_mode()
def test_one_step_samples_a_gaussian_and_more_steps_end_at_the_same_images(meanflow):
    x = samples(meanflow, 1)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, rel=0.05)
    for steps in (2, 3, 8):
        torch.testing.assert_close(samples(meanflow, steps), x, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_sample_takes_one_call_of_one_net_by_default():
    family = MeanFlow(MeanFlowConfig(width=8)).for_sampling()
    assert family.defaults() == {"steps": 1}
    calls = []
    family.unet.register_forward_hook(lambda *_: calls.append(1))
    samples(family, family.defaults()["steps"])
    assert calls == [1]
    assert [name for name, _ in family.named_children()] == ["unet"]


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_targets_are_the_average_velocities_of_the_guided_flow(guidance):
    shift = 0.2
    family = family_of(Gaussian(shift), guidance=guidance)
    torch.manual_seed(0)
    time, span = torch.tensor([0.0, 0.0, 0.4, 0.9]).repeat(16), torch.tensor([1.0, 0.1, 0.3, 0.1]).repeat(16)
    x = (1 - time).view(-1, 1, 1, 1) * torch.randn(64, 1, 28, 28).clamp(-2, 2) + time.view(-1, 1, 1, 1) * MEAN
    label = family.one_hot(torch.full((64,), 3))
    # Both predictions are linear in the mean of the images, so guidance moves that.
    exact = Gaussian(guidance * shift).average(x, time, span, label)
    errors = (family.path_target(x, time, span, label) - exact).abs()
    assert float(errors.max()) < 0.3  # of Euler's method
    assert float(errors[1::4].max()) < 0.02  # shorter steps
    times = [time for time, _ in family.velocity.calls]
    assert len(times) == PATH_STEPS * (2 if guidance != 1 else 1)
    assert float(torch.stack(times).max()) < 1


def test_both_nets_learn_from_the_images_and_only_from_their_own_loss():
    family = MeanFlow(MeanFlowConfig(width=8))
    assert family.update_order() == ("velocity", "unet")
    x, label = torch.rand(8, 1, 28, 28) * 2 - 1, torch.arange(8)
    for player, other in (("velocity", "unet"), ("unet", "velocity")):
        loss = family.loss(player, x, label)["loss"]
        parameters = [list(family.player(name).parameters()) for name in (player, other)]
        own, others = (torch.autograd.grad(loss, p, allow_unused=True, retain_graph=True) for p in parameters)
        assert any(gradient is not None and gradient.any() for gradient in own)
        assert all(gradient is None for gradient in others)


def test_a_fixed_velocity_is_not_trained():
    assert MeanFlow(MeanFlowConfig(width=8, fixed_velocity=True)).update_order() == ("unet",)


def test_exact_nets_have_the_least_loss():
    torch.manual_seed(0)
    x, label = MEAN + STD * torch.randn(500, 1, 28, 28), torch.zeros(500, dtype=torch.int64)
    for player in ("velocity", "unet"):
        losses = []
        for shift in (-0.2, 0.0, 0.2):
            family = family_of(Gaussian())
            learning = Gaussian()
            learning.mean = lambda _, shift=shift: MEAN + shift
            if player == "velocity":
                family.velocity = learning
            else:
                family.predict = learning.average
            torch.manual_seed(1)
            losses.append(float(family.loss(player, x, label)["loss"]))
        assert losses[1] < min(losses[0], losses[2])


def test_the_loss_of_the_velocity_is_that_of_flow():
    family = MeanFlow(MeanFlowConfig(width=8))
    inputs = []
    family.velocity.forward = lambda x, time, _: inputs.append((x, time.view(-1, 1, 1, 1))) or torch.full_like(x, 0.2)
    x = torch.rand(512, 1, 28, 28) * 2 - 1
    loss = float(family.loss("velocity", x, torch.zeros(512, dtype=torch.int64))["loss"])
    _, t = inputs[0]
    assert loss == pytest.approx(float(((0.2 - x) / (1 - t).clamp(min=MIN_REMAINING_TIME)).square().mean()), rel=1e-4)


def test_intervals_lie_in_the_path_and_most_are_the_whole_path(meanflow):
    calls = []
    exact = meanflow.predict
    meanflow.predict = lambda x, time, span, label: calls.append((x, time, span)) or exact(x, time, span, label)
    x = torch.full((4000, 1, 28, 28), 0.5)
    meanflow.loss("unet", x, torch.zeros(4000, dtype=torch.int64))
    ((state, time, span),) = calls
    whole = span == 1
    assert float(whole.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert (time[whole] == 0).all()
    assert float(time.min()) >= 0
    assert float((time + span).max()) <= 1 + 1e-6
    assert float(span.min()) >= MIN_SPAN
    assert float(state[whole].mean()) == pytest.approx(0, abs=0.01), "a whole path starts at noise alone"


def test_labels_are_dropped_with_the_configured_probability():
    family = family_of(Gaussian(), drop_label=0.25)
    for player in ("velocity", "unet"):
        family.loss(player, torch.zeros(4000, 1, 28, 28), torch.full((4000,), 3))
        label = family.velocity.calls[0][1]
        assert float((label.sum(1) == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
        family.velocity.calls.clear()


@torch.inference_mode()
def test_started_from_the_weights_of_flow_both_nets_have_its_velocity():
    flow, manifest = store.load(WEIGHTS / "flow")
    family = MeanFlow(MeanFlowConfig())
    copy_weights(family, flow, manifest, manifest.classes)
    x, time = torch.randn(4, 1, 28, 28), torch.tensor([0.0, 0.3, 0.6, 0.9])
    label = family.one_hot(torch.tensor([1, 2, 3, -1]))
    expected = flow.unet(x, time, label)
    torch.testing.assert_close(family.velocity(x, time, label), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(family.predict(x, time, torch.zeros(4), label), expected, atol=1e-4, rtol=0)
    assert (family.predict(x, time, torch.ones(4), label) - expected).abs().mean() > 0.1, "the interval has an effect"


def test_without_a_game_there_is_no_discriminator_to_train():
    plain, game = MeanFlow(MeanFlowConfig(width=8)), MeanFlow(MeanFlowConfig(width=8, game=0.5))
    assert plain.update_order() == ("velocity", "unet")
    assert not list(plain.discriminator.parameters())
    assert game.update_order() == ("velocity", "discriminator", "unet")
    assert MeanFlow(MeanFlowConfig(width=8, game=0.5, fixed_velocity=True)).update_order() == ("discriminator", "unet")
    assert [name for name, _ in game.for_sampling().named_children()] == ["unet"]


def test_the_game_compares_samples_of_one_step_with_the_data():
    """A discriminator that knows the brightness of an image tells how far that of the samples is from the data's."""
    family, x = family_of(Gaussian(), game=0.5), torch.full((2000, 1, 28, 28), 1.0)
    family.discriminator = Brightness()
    label = torch.zeros(2000, dtype=torch.int64)
    terms = family.loss("discriminator", x, label)
    assert float(terms["margin"]) == pytest.approx(1 - MEAN, abs=0.01)
    assert float(terms["r1"]) == pytest.approx(1 / 784, rel=1e-4)
    assert float(terms["r2"]) == pytest.approx(1 / 784, rel=1e-4)
    terms = family.loss("unet", x, label)
    assert float(terms["game"]) == pytest.approx(math.log1p(math.exp(1 - MEAN)), abs=0.01)
    assert float(terms["loss"]) == pytest.approx(float(terms["path"] + 0.5 * terms["game"]), abs=1e-5)


def test_paths_are_followed_for_the_configured_share_of_a_batch():
    family = family_of(Gaussian(), path_share=0.25)
    family.loss("unet", torch.zeros(40, 1, 28, 28), torch.zeros(40, dtype=torch.int64))
    assert {len(time) for time, _ in family.velocity.calls} == {10}


def test_truncation_scales_the_noise_that_samples_start_from():
    index = torch.arange(4)
    inputs = torch.full_like(index, 7), index, torch.zeros(4, 10), torch.zeros(4, 2)
    full, short = (family_of(Gaussian(), truncation=scale).initial_state(*inputs) for scale in (1.0, 0.8))
    assert torch.equal(short, 0.8 * full)


class Brightness(nn.Module):
    """A discriminator that says the mean of an image."""

    def forward(self, x, label):
        return x.flatten(1).mean(1)


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "meanflow", mnist_cnn_fd=0.12, precision=0.87, recall=0.65, coverage=0.8, accuracy=0.98, worst_digit=0.95
    )
