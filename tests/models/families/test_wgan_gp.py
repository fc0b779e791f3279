"""The gradient penalty and the estimate of the critic."""

import json

import pytest
import torch
from torch import nn

from models.families.wgan_gp import WGANGP, WGANGPConfig
from tests.conftest import assert_weights_reach
from training.cli import main


@pytest.fixture
def wgan():
    torch.manual_seed(0)
    return WGANGP(WGANGPConfig(generator_width=8, critic_width=8))


class Linear(nn.Module):
    """A critic with the constant gradient `slope`."""

    def __init__(self, norm):
        super().__init__()
        direction = torch.randn(784)
        self.slope = norm * direction / direction.norm()

    def forward(self, x):
        return (x.flatten(1) @ self.slope)[:, None]


@pytest.mark.parametrize(("norm", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.5, 0.25)])
def test_the_penalty_of_a_linear_critic(wgan, norm, penalty):
    wgan.critic = Linear(norm)
    x, generated = torch.randn(2, 5, 1, 28, 28)
    assert wgan.gradient_penalty(x, generated).item() == pytest.approx(penalty, abs=1e-4)


def test_the_penalty_uses_a_share_of_the_batch(wgan):
    sizes = []
    wgan.gradient_penalty = lambda x, generated: sizes.append((len(x), len(generated))) or x.sum() * 0
    wgan.loss("critic", torch.randn(8, 1, 28, 28), torch.zeros(8))
    assert sizes == [(2, 2)]


def test_a_constant_critic_has_a_finite_penalty_and_gradient(wgan):
    for parameter in wgan.critic.parameters():
        nn.init.zeros_(parameter)
    x, generated = torch.randn(2, 5, 1, 28, 28)
    penalty = wgan.gradient_penalty(x, generated)
    assert penalty.item() == pytest.approx(1, abs=1e-4)
    gradients = torch.autograd.grad(penalty, list(wgan.critic.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_a_critic_of_slope_one_measures_the_distance(wgan):
    wgan.critic = Linear(1.0)
    shift = 2 * wgan.critic.slope.view(1, 28, 28)
    x = torch.randn(64, 1, 28, 28)
    wgan.generate = lambda *_: x - shift
    terms = wgan.loss("critic", x, torch.zeros(64))
    assert terms["w1"].item() == pytest.approx(2, abs=1e-3)
    assert terms["loss"].item() == pytest.approx(-2, abs=1e-3)


def test_the_critic_has_five_steps_per_step_of_the_generator(wgan):
    assert wgan.update_order() == ("critic",) * 5 + ("generator",)
    assert WGANGPConfig().penalty == 10


def test_the_critic_has_no_batch_norm(wgan):
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in wgan.critic.modules())


def test_training_logs_the_estimate_of_the_critic(tmp_path):
    small = ["--generator-width", "8", "--critic-width", "8", "--epochs", "0.5"]
    assert main(["fit", "wgan_gp", "--run", str(tmp_path / "run"), "--data", "digits", "--device", "cpu", *small]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["critic.w1"] for line in lines if "critic.w1" in line]


def test_committed_weights_reach_their_goals():
    assert_weights_reach("wgan_gp", mnist_cnn_fd=0.4, precision=0.8, recall=0.6, coverage=0.7)
