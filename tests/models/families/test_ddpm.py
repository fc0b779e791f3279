"""Diffusion against closed forms."""

import itertools
import math

import pytest
import torch
from torch import nn

from models.base import Rows, invert, sample
from models.denoisers import guided
from models.families.ddpm import DDPM, MIN_SIGMA, DDPMConfig, cosine_schedule
from tests.conftest import assert_weights_reach


@pytest.fixture
def ddpm():
    return DDPM(DDPMConfig(width=8)).for_sampling()


class GaussianScore(nn.Module):
    """E[x_0 | x_t] = m + alpha s^2 (x_t - alpha m) / (alpha^2 s^2 + sigma^2) for x_0 ~ N(m, s^2)."""

    def __init__(self, family, mean, std):
        super().__init__()
        self.abar, self.mean, self.std = family.alphas_cumprod, mean, std

    def forward(self, x, time, label):
        abar = self.abar[(time * len(self.abar)).round().long() - 1].view(-1, 1, 1, 1)
        variance = abar * self.std**2 + 1 - abar
        return self.mean + abar.sqrt() * self.std**2 / variance * (x - abar.sqrt() * self.mean)


def test_the_forward_kernel_equals_its_closed_form(ddpm):
    # q(x_t | x_0) composed step by step: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps.
    abar = ddpm.alphas_cumprod.double()
    betas = 1 - abar / torch.cat((torch.ones(1).double(), abar[:-1]))
    mean, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for t in range(600):
        mean, variance = mean * (1 - betas[t]).sqrt(), variance * (1 - betas[t]) + betas[t]
    x = torch.full((4000, 1, 2, 2), 0.5)
    x_t = ddpm.diffuse(x, torch.full((4000,), 599), torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert float(x_t.mean()) == pytest.approx(0.5 * float(mean), abs=4 * math.sqrt(float(variance) / x.numel()))
    assert float(x_t.var()) == pytest.approx(float(variance), rel=0.05)
    assert float(mean) == pytest.approx(float(abar[599].sqrt()), rel=1e-6)
    assert float(variance) == pytest.approx(1 - float(abar[599]), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 333, 500, 999, 1000])
def test_times_decrease_from_the_end_of_the_chain(ddpm, steps):
    times = ddpm.schedule(steps, "dpm++2m")[:, 0]
    assert times[0] == 1
    assert (times.diff() < 0).all()
    assert times[-1] > 0


def test_the_schedule_goes_from_image_to_noise():
    abar = cosine_schedule(1000)
    assert (abar.diff() < 0).all()
    assert abar[0] > 0.999
    assert abar[-1] < 0.002


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 400), ("ddim", 100), ("dpm++2m", 20)])
@torch.inference_mode()
def test_samples_of_a_gaussian_with_known_score_have_its_mean_and_variance(ddpm, sampler, steps):
    mean, std = -0.3, 0.15
    ddpm.unet = GaussianScore(ddpm, mean, std)
    index = torch.arange(16)
    x = sample(ddpm, torch.zeros_like(index), index, torch.zeros(16, 10), steps=steps, sampler=sampler)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(std, rel=0.05)


@torch.inference_mode()
def test_the_second_order_sampler_is_more_accurate_than_the_first_order_one(ddpm):
    ddpm.unet = GaussianScore(ddpm, -0.3, 0.15)
    index = torch.arange(8)
    rows = (torch.zeros_like(index), index, torch.zeros(8, 10))
    limit = sample(ddpm, *rows, steps=1000, sampler="ddim")
    first, second = (sample(ddpm, *rows, steps=15, sampler=name) for name in ("ddim", "dpm++2m"))
    assert (second - limit).abs().mean() < 0.5 * (first - limit).abs().mean()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
@torch.inference_mode()
def test_noised_data_are_the_states_of_chains_that_lead_to_them(ddpm, sampler):
    x = torch.rand(4, 1, 28, 28) * 2 - 1
    eps, label = torch.randn(4, 1, 28, 28), torch.zeros(4, 10)
    ddpm.unet.forward = lambda *_: x
    ones, zero = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    schedule = ddpm.schedule(9, sampler)
    state = ddpm.noised(x, schedule[:1].expand(4, -1), eps)
    for line, following in itertools.pairwise(schedule):
        coefficients = line.expand(4, -1)
        after = ddpm.step(Rows(state, label, coefficients, ones, zero, zero, zero))
        assert torch.equal(ddpm.predicted(state, after, coefficients), x)
        torch.testing.assert_close(after, ddpm.noised(x, following.expand(4, -1), eps), atol=1e-5, rtol=0)
        state = after


@torch.inference_mode()
def test_guidance_extrapolates_from_the_unlabelled_to_the_labelled_prediction(ddpm):
    for parameter in ddpm.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, time = torch.randn(3, 1, 28, 28), torch.tensor([0.1, 0.5, 0.9])
    label = ddpm.one_hot(torch.tensor([1, 2, 3]))
    labelled, unlabelled = ddpm.unet(x, time, label), ddpm.unet(x, time, torch.zeros_like(label))
    result = guided(ddpm.unet, x, time, label, torch.tensor([1.0, 0.0, 2.5]))
    assert torch.allclose(result[0], labelled[0], atol=1e-5)
    assert torch.allclose(result[1], unlabelled[1], atol=1e-5)
    assert torch.allclose(result[2], unlabelled[2] + 2.5 * (labelled[2] - unlabelled[2]), atol=1e-5)


def test_labels_are_dropped_with_the_configured_probability():
    family = DDPM(DDPMConfig(width=8, drop_label=0.3))
    labels = []
    family.unet.forward = lambda x, _, label: labels.append(label) or torch.zeros_like(x)
    torch.manual_seed(0)
    family.loss("self", torch.zeros(4000, 1, 28, 28), torch.zeros(4000, dtype=torch.int64))
    assert float((labels[0].sum(1) == 0).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_the_loss_is_the_squared_error_of_the_velocity():
    family = DDPM(DDPMConfig(width=8))
    inputs = []
    family.unet.forward = lambda x, time, _: inputs.append((x, time)) or torch.full_like(x, 0.2)
    x = torch.rand(512, 1, 28, 28) * 2 - 1
    torch.manual_seed(3)
    loss = float(family.loss("self", x, torch.zeros(512, dtype=torch.int64))["loss"])
    x_t, time = inputs[0]
    abar = family.alphas_cumprod[(time * 1000).round().long() - 1].view(-1, 1, 1, 1)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()

    def velocity(x_0):  # alpha eps - sigma x_0, with the eps that x_t and x_0 imply
        return alpha * (x_t - alpha * x_0) / sigma - sigma * x_0

    errors = (velocity(x) - velocity(torch.full_like(x, 0.2))).square().mean((1, 2, 3))
    clean = sigma.flatten() < MIN_SIGMA
    weight = torch.where(clean, (sigma.flatten() / MIN_SIGMA) ** 2, 1.0)
    assert loss == pytest.approx(float((weight * errors).mean()), rel=1e-3)
    assert 0.02 < float(clean.float().mean()) < 0.15


def test_training_times_are_mostly_noisy_and_partly_uniform():
    family = DDPM(DDPMConfig(width=8))
    torch.manual_seed(0)
    t = family.times(20_000, torch.device("cpu"))
    assert int(t.min()) >= 0
    assert int(t.max()) < 1000
    abar = family.alphas_cumprod[t].double()
    half_log_snr = 0.5 * (abar / (1 - abar)).log()
    quartile, median = half_log_snr.quantile(0.25), half_log_snr.median()
    assert -1.7 < float(quartile) < -1.2
    assert -0.9 < float(median) < -0.6
    assert float((t < 100).double().mean()) > 0.02


@pytest.mark.parametrize("timesteps", [50, 100])
@torch.inference_mode()
def test_a_short_chain_inverts_and_samples_like_a_long_one(timesteps):
    family = DDPM(DDPMConfig(width=8, timesteps=timesteps)).for_sampling()
    assert int(family.times(1000, torch.device("cpu")).max()) < timesteps
    family.unet = GaussianScore(family, -0.3, 0.15)
    x = -0.3 + 0.15 * torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    state = invert(family, x, torch.zeros(4, 10))
    assert state[:, :1].std().item() == pytest.approx(1, rel=0.25)
    index = torch.arange(16)
    samples = sample(family, torch.zeros_like(index), index, torch.zeros(16, 10), steps=timesteps, sampler="dpm++2m")
    assert float(samples.mean()) == pytest.approx(-0.3, abs=0.02)


def test_too_few_timesteps_are_refused():
    with pytest.raises(ValueError, match="timesteps is 5; the minimum is 50"):
        DDPM(DDPMConfig(width=8, timesteps=5))


def test_without_labels_there_is_no_guidance():
    assert DDPM(DDPMConfig(width=8), classes=0).guidance is None


@torch.inference_mode()
def test_sampling_from_the_inverted_state_reconstructs_the_image(ddpm):
    ddpm.unet = GaussianScore(ddpm, -0.3, 0.15)
    x = -0.3 + 0.15 * torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(4, 10)
    state = invert(ddpm, x, label)
    assert state[:, :1].std().item() == pytest.approx(1, rel=0.15)
    ones, zero = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    for coefficients in ddpm.schedule(50, "ddim"):
        state = ddpm.step(Rows(state, label, coefficients * ones, ones[:, 0], zero, zero, zero))
    assert (ddpm.decode(state) - x).abs().mean().item() < 0.02


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "ddpm", mnist_cnn_fd=0.18, precision=0.87, recall=0.85, coverage=0.87, accuracy=0.985, worst_digit=0.96
    )
