"""Denoising diffusion: a variational auto-encoder with many steps whose encoder only adds noise.

The forward chain has a closed form, q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)   (Ho et al. 2020, equation 4),
and the variational bound reduces to predicting the image before the noise                (equations 8-14)

    E_t w_t || x_0 - x_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y) ||^2,   w_t = 1 / max(1 - abar_t, 0.09).

Ho's net predicts eps, which is the same with w_t = abar_t / (1 - abar_t). Images occupy few of the dimensions that
noise fills, so x_0 is easier to predict (Li & He 2025, arXiv 2511.13720). A w_t like that of the velocity loss
(Salimans & Ho 2022, arXiv 2202.00512, section 4) gives weight to noisy times without neglecting the nearly clean ones.

Sampling starts from x_T ~ N(0, I). Every sampler here is linear in the state x, the predicted x_0, the previous
prediction and fresh noise, so a schedule is a table of coefficients and rows of different samplers share a batch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise, parallel, updates
from models.base import About, Family, Range, Recipe, Rows, Terms, coefficient_columns
from models.denoisers import PATCH_HELP, any_set, denoiser, guided_rows
from models.losses import mix_times, sample_log_snr
from models.nets import LEVELS_HELP

MIN_SIGMA = 0.3
"""The lower bound on sqrt(1 - abar_t) in the loss. Below it the nearly clean times outweigh all others."""
ANGLES = (0.01, 0.98 * math.pi / 2)
"""arctan(sigma / alpha) at the ends of the forward chain."""
MIN_TIMESTEPS = 50
"""With fewer timesteps a single step is so long that inversion diverges."""
INVERSION_STEPS = 50


@dataclass(frozen=True)
class DDPMConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at its largest size, a multiple of 8"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    patch: int = field(default=0, metadata={"help": PATCH_HELP})
    timesteps: int = field(default=1000, metadata={"help": "T, the length of the forward chain"})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images without their label"})


class DDPM(Family):
    """The state is the pair (x_t, the previous prediction of x_0) along the first axis: [B, 2, 28, 28]."""

    Config = DDPMConfig
    about = About(
        title="Denoising diffusion probabilistic model",
        formula="min  E_t ||x_0 - x_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y)||^2 / max(1 - abar_t, 0.09),  "
        "eps ~ N(0, I), t mostly noisy",
        paper="Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239; guidance: Ho & Salimans, "
        "arXiv 2207.12598; ddim: Song et al., arXiv 2010.02502; dpm++2m: Lu et al., arXiv 2211.01095; "
        "net that predicts x_0: Li & He, arXiv 2511.13720",
    )
    recipe = Recipe(epochs=12, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    samples_label = True  # without one, the unconditional network samples without guidance, which looks worse
    steps = Range(1, 1000, 20)
    samplers = ("dpm++2m", "ddim", "ddpm")
    noise_column = 6
    guidance: Range[float] | None = Range(0.0, 10.0, 1.6)
    encodes = True
    revision = 2
    config: DDPMConfig

    def __init__(self, config: DDPMConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        if config.timesteps < MIN_TIMESTEPS:
            raise ValueError(f"timesteps is {config.timesteps}; the minimum is {MIN_TIMESTEPS}")
        if not classes:
            self.guidance = None
        # A chain visits each time at most once.
        self.steps = Range(1, config.timesteps, min(DDPM.steps.default, config.timesteps))
        self.inversion = {"steps": min(INVERSION_STEPS, config.timesteps), "sampler": "ddim", "guidance": 1.0}
        self.unet = denoiser(self.data_shape, config.width, classes, config.levels, config.patch)
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", cosine_schedule(config.timesteps), persistent=False)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        t = self.times(len(x), x.device)
        eps = parallel.randn(*x.shape, device=x.device)
        kept = parallel.rand(len(x), device=x.device) >= self.config.drop_label
        y = self.one_hot(label) * kept[:, None]
        predicted = self.unet(self.diffuse(x, t, eps), (t + 1) / self.config.timesteps, y)
        sigma = (1 - self.alphas_cumprod[t]).sqrt().view(-1, *[1] * (x.dim() - 1))
        return {"loss": ((x - predicted) / sigma.clamp(min=MIN_SIGMA)).square().mean()}

    def times(self, count: int, device: torch.device) -> Tensor:
        """Training times t [count] in 0..T-1: mostly those at which the digit is decided, a share of them uniform."""
        total = self.config.timesteps
        angle = torch.exp(-sample_log_snr(count, device)).atan()
        first, last = ANGLES
        noisy = ((angle - first) / (last - first) * (total - 1)).round().long().clamp(0, total - 1)
        return mix_times(noisy, parallel.randint(total, count, device))

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of q(x_t | x_0 = x) for t [B] in 0..T-1 and eps ~ N(0, I) with the shape of x."""
        abar = self.alphas_cumprod[t].view(-1, *[1] * (x.dim() - 1))
        return abar.sqrt() * x + (1 - abar).sqrt() * eps

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        x = noise.initial(seed, index, self.data_shape)
        return torch.cat((x, torch.zeros_like(x)), dim=1)

    def step(self, rows: Rows) -> Tensor:
        time, input_x, input_previous = coefficient_columns(rows.coefficients[:, :3], rows.state)
        x, previous_x_0 = rows.state.chunk(2, dim=1)
        x_0 = guided_rows(self.unet, input_x * x + input_previous * previous_x_0, time.flatten(), rows)
        eps = None
        if rows.noisy and any_set(rows.coefficients[:, self.noise_column]):
            eps = noise.normal(rows.seed, rows.index, rows.step, self.data_shape)
        return updates.diffuse(rows.state, x_0, rows.coefficients[:, 3:], eps)

    def decode(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=1)[0].clamp(-1, 1)

    def predicted(self, before: Tensor, after: Tensor, coefficients: Tensor) -> Tensor:
        return after.chunk(2, dim=1)[1]

    def noised(self, x: Tensor, coefficients: Tensor, eps: Tensor) -> Tensor:
        """x_t of q(x_t | x_0 = x), and x for the previous prediction."""
        t = (coefficients[:, 0] * self.config.timesteps).round().long() - 1
        return torch.cat((self.diffuse(x, t, eps), x), dim=1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """The state that inversion starts from: the mean of q(x_t | x) at the time t of the schedule's last step.

        The noise that the last step removes leaves no trace in x, so initial states have slightly less variance than
        noise.
        """
        last = self.schedule(self.inversion["steps"], "ddim")[-1, 0]
        abar = self.alphas_cumprod[(last * self.config.timesteps).round().long() - 1]
        return torch.cat((abar.sqrt() * x, x), dim=1)

    def inversion_schedule(self) -> Tensor:
        """DDIM's deterministic chain in reverse (Song et al. 2021, section 4.3).

        The forward step is x_s = a x_t + b x_theta(x_t, t), and its prediction changes little between neighbouring
        times. So the previous prediction gives an estimate of x_t, at which the net makes the prediction that x_t is
        then computed from.
        """
        time, _, _, a, b = self.schedule(self.inversion["steps"], "ddim")[:-1].flip(0)[:, :5].unbind(1)
        zero, memory = torch.zeros_like(time), torch.ones_like(time)
        if len(time):
            memory[-1] = 0.0
        return torch.stack((time, 1 / a, -b / a, 1 / a, -b / a, zero, zero, memory), dim=1)

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The coefficients of each step, [steps, 8].

        Time in (0, 1]; the factors of the state and of the previous x_0 in x_t, the input of the net; the factors of
        the state, x_0, the previous x_0 and noise in the next state; and the factor of x_0 in the memory.

        Times start at T for any number of steps (Lin et al., arXiv 2305.08891) and are denser towards the image: on
        Gaussians with known score this halves the error of uniform times.
        """
        total = self.config.timesteps
        left = torch.arange(steps, 0, -1)
        dense = (total * (left / steps).double() ** 1.5).round().long()
        t = torch.maximum(dense, left) - 1  # distinct times despite rounding
        abar = self.alphas_cumprod.cpu().double()[t]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        # The last step ends at x_0: alpha 1, sigma 0.
        alpha_next, sigma_next = torch.cat((alpha[1:], torch.ones(1))), torch.cat((sigma[1:], torch.zeros(1)))
        samplers = {"ddim": _ddim, "ddpm": _ancestral, "dpm++2m": _multistep}
        coefficients = samplers[sampler or self.samplers[0]](alpha, sigma, alpha_next, sigma_next)
        one = torch.ones_like(alpha)
        return torch.stack(((t + 1) / total, one, 0 * one, *coefficients, one), dim=1).float()


Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""The factors of x_t, x_0, the previous x_0 and fresh noise in each step, [steps] each."""


def cosine_schedule(timesteps: int) -> Tensor:
    """abar_t = cos(theta_t)^2 [T] with theta evenly spaced (Nichol & Dhariwal 2021, equation 17).

    The range ends where the noise is below one and a half grey levels, and where the signal is 0.1 % of the variance.
    """
    theta = torch.linspace(*ANGLES, timesteps, dtype=torch.float64)
    return theta.cos().square().float()


def _ancestral(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """The posterior q(x_s | x_t, x_0) of the forward chain, s the next time (Ho et al. 2020, equation 7)."""
    noise_std = (sigma_next / sigma) * (1 - (alpha / alpha_next).square()).clamp(min=0).sqrt()
    eps_scale = (sigma_next.square() - noise_std.square()).clamp(min=0).sqrt()
    to_x = eps_scale / sigma
    return to_x, alpha_next - to_x * alpha, torch.zeros_like(alpha), noise_std


def _ddim(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """The deterministic chain with the same marginals (Song et al. 2021, equation 12 with sigma 0)."""
    to_x = sigma_next / sigma
    return to_x, alpha_next - to_x * alpha, torch.zeros_like(alpha), torch.zeros_like(alpha)


def _multistep(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """DPM-Solver++(2M): second order by the previous prediction (Lu et al. 2022, Algorithm 2).

    The first and the last step are DDIM's.
    """
    to_x, to_x_0, _, noise_std = _ddim(alpha, sigma, alpha_next, sigma_next)
    half_log_snr = (alpha / sigma).log()
    h = half_log_snr.diff()
    extrapolation = torch.zeros_like(alpha)
    extrapolation[1:-1] = h[1:] / (2 * h[:-1])  # 1 / (2 r)
    return to_x, to_x_0 * (1 + extrapolation), -to_x_0 * extrapolation, noise_std
