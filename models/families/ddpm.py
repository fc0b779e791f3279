"""Denoising diffusion: a variational auto-encoder of many steps whose encoder only adds noise.

The forward chain has a closed form, q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)   (Ho et al. 2020, equation 4),
and the variational bound comes down to guessing what was there before the noise          (equations 8-14)

    E_t w_t || x_0 - x_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y) ||^2,   w_t = 1 / max(1 - abar_t, 0.09).

Ho's net guesses eps, which is the same with w_t = abar_t / (1 - abar_t). Images fill few of the directions that noise
does, so x_0 is the easier thing to say (Li & He 2025, arXiv 2511.13720), and a w_t like that of the velocity's loss
(Salimans & Ho 2022, arXiv 2202.00512, section 4) does not give up on the times full of noise, nor think of nothing but
those that have none.

Drawing walks back from x_T ~ N(0, I). Every sampler here is linear in the state x, the net's guess of x_0, its previous
guess and fresh noise, so a plan is a table of coefficients and rows of different samplers share one batch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise, parallel
from models.base import About, Family, Range, Recipe, Rows, Terms, coefficient_columns
from models.losses import UNIFORM_SHARE, sample_log_snr
from models.nets import any_set, denoiser, guided

LEAST_SIGMA = 0.3
"""sqrt(1 - abar_t) that the loss divides by, at least: less, and the last touches outweigh all else."""
ANGLES = (0.01, 0.98 * math.pi / 2)
"""arctan(sigma / alpha) at the ends of the forward chain."""
FEWEST_TIMES = 50
"""Of fewer, each link is so long that walking it back goes astray."""
INVERSION_STEPS = 50


@dataclass(frozen=True)
class DDPMConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at 14x14, a multiple of 8"})
    timesteps: int = field(default=1000, metadata={"help": "T, the length of the forward chain"})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images shown without their label"})


class DDPM(Family):
    """The state is the pair (x_t, the previous guess of x_0) along the first axis: [B, 2, 28, 28]."""

    Config = DDPMConfig
    about = About(
        title="Denoising diffusion probabilistic model",
        formula="min  E_t ||x_0 - x_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y)||^2 / max(1 - abar_t, 0.09),  "
        "eps ~ N(0, I), t mostly noisy",
        paper="Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239; guidance: Ho & Salimans, "
        "arXiv 2207.12598; ddim: Song et al., arXiv 2010.02502; dpm++2m: Lu et al., arXiv 2211.01095; net that guesses "
        "x_0: Li & He, arXiv 2511.13720",
    )
    recipe = Recipe(epochs=12, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    steps = Range(1, 1000, 20)
    samplers = ("dpm++2m", "ddim", "ddpm")
    guidance: Range[float] | None = Range(0.0, 10.0, 1.6)
    encodes = True
    revision = 2
    config: DDPMConfig

    def __init__(self, config: DDPMConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        if config.timesteps < FEWEST_TIMES:
            raise ValueError(f"timesteps {config.timesteps}: fewer than {FEWEST_TIMES} leave too much to each link")
        if not classes:
            self.guidance = None
        # No chain has more links than times to stop at.
        self.steps = Range(1, config.timesteps, min(DDPM.steps.default, config.timesteps))
        self.inversion = {"steps": min(INVERSION_STEPS, config.timesteps), "sampler": "ddim", "guidance": 1.0}
        self.unet = denoiser(self.data_shape, config.width, classes)
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", cosine_schedule(config.timesteps), persistent=False)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        t = self.times(len(x), x.device)
        eps = parallel.randn(*x.shape, device=x.device)
        kept = parallel.rand(len(x), device=x.device) >= self.config.drop_label
        y = self.one_hot(label) * kept[:, None]
        guess = self.unet(self.diffuse(x, t, eps), (t + 1) / self.config.timesteps, y)
        sigma = (1 - self.alphas_cumprod[t]).sqrt().view(-1, *[1] * (x.dim() - 1))
        return {"loss": ((x - guess) / sigma.clamp(min=LEAST_SIGMA)).square().mean()}

    def times(self, count: int, device: torch.device) -> Tensor:
        """t [count] in 0..T-1 to train on: mostly where the digit is settled, a part evenly."""
        total = self.config.timesteps
        angle = torch.exp(-sample_log_snr(count, device)).atan()
        first, last = ANGLES
        early = ((angle - first) / (last - first) * (total - 1)).round().long().clamp(0, total - 1)
        evenly = parallel.randint(total, count, device)
        return torch.where(parallel.rand(count, device=device) < UNIFORM_SHARE, evenly, early)

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of q(x_t | x_0 = x) for t [B] in 0..T-1 and eps ~ N(0, I) shaped like x."""
        abar = self.alphas_cumprod[t].view(-1, *[1] * (x.dim() - 1))
        return abar.sqrt() * x + (1 - abar).sqrt() * eps

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        x = noise.initial(seed, index, self.data_shape)
        return torch.cat((x, torch.zeros_like(x)), dim=1)

    def step(self, rows: Rows) -> Tensor:
        time, at, towards, keep, guess, previous, fresh, remembered = coefficient_columns(rows)
        x, x_0_previous = rows.state.chunk(2, dim=1)
        x_t = at * x + towards * x_0_previous
        x_0 = guided(self.unet, x_t, time.flatten(), rows.label, rows.guidance).clamp(-1, 1)
        state = keep * x + guess * x_0 + previous * x_0_previous
        if any_set(fresh):
            state = state + fresh * noise.normal(rows.seed, rows.index, rows.step, self.data_shape)
        return torch.cat((state, remembered * x_0), dim=1)

    def decode(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=1)[0].clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """Where the way back from x begins: what the last link left of it.

        Noise that the last link takes away leaves no trace in x, so the start is a little shorter than noise is.
        """
        last = self.schedule(self.inversion["steps"], "ddim")[-1, 0]
        abar = self.alphas_cumprod[(last * self.config.timesteps).round().long() - 1]
        return torch.cat((abar.sqrt() * x, x), dim=1)

    def inversion_schedule(self) -> Tensor:
        """DDIM's deterministic chain walked back (Song et al. 2021, section 4.3).

        A link was x_s = keep x_t + share x_theta(x_t, t), whose guess moves little from one time to the next: so x_t is
        known by the guess before, well enough for a guess that then tells it better.
        """
        time, _, _, keep, share = self.schedule(self.inversion["steps"], "ddim")[:-1].flip(0)[:, :5].unbind(1)
        none, remembered = torch.zeros_like(time), torch.ones_like(time)
        if len(time):
            remembered[-1] = 0.0
        return torch.stack((time, 1 / keep, -share / keep, 1 / keep, -share / keep, none, none, remembered), dim=1)

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """[steps, 8]: time in (0, 1]; what multiplies the state and the previous x_0 in x_t, which the net sees; what
        multiplies the state, x_0, the previous x_0 and noise in the next state; and how much of x_0 is remembered.

        Times begin at T, whatever the number of steps (Lin et al., arXiv 2305.08891), and lie denser towards the image:
        on Gaussians of known score that halves the error of even ones.
        """
        total = self.config.timesteps
        left = torch.arange(steps, 0, -1)
        dense = (total * (left / steps).double() ** 1.5).round().long()
        t = torch.maximum(dense, left) - 1  # never the same time twice, whatever is lost to rounding
        abar = self.alphas_cumprod.double().cpu()[t]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        # The last link arrives at x_0 itself: alpha 1, sigma 0.
        alpha_next, sigma_next = torch.cat((alpha[1:], torch.ones(1))), torch.cat((sigma[1:], torch.zeros(1)))
        samplers = {"ddim": _ddim, "ddpm": _ancestral, "dpm++2m": _multistep}
        coefficients = samplers[sampler or self.samplers[0]](alpha, sigma, alpha_next, sigma_next)
        one = torch.ones_like(alpha)
        return torch.stack(((t + 1) / total, one, 0 * one, *coefficients, one), dim=1).float()


Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""What multiplies x_t, x_0, the previous x_0 and fresh noise in each link, [steps] each."""


def cosine_schedule(timesteps: int) -> Tensor:
    """abar_t = cos(theta_t)^2 [T] with theta evenly spaced (Nichol & Dhariwal 2021, equation 17).

    The ends are cut where the noise is below a grey level and a half, and where the signal is 0.1 % of the variance.
    """
    theta = torch.linspace(*ANGLES, timesteps, dtype=torch.float64)
    return theta.cos().square().float()


def _ancestral(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """The posterior q(x_s | x_t, x_0) of the forward chain, s the next time (Ho et al. 2020, equation 7)."""
    noise_std = (sigma_next / sigma) * (1 - (alpha / alpha_next).square()).clamp(min=0).sqrt()
    towards_eps = (sigma_next.square() - noise_std.square()).clamp(min=0).sqrt()
    keep = towards_eps / sigma
    return keep, alpha_next - keep * alpha, torch.zeros_like(alpha), noise_std


def _ddim(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """The deterministic chain with the same marginals (Song et al. 2021, equation 12 with sigma 0)."""
    keep = sigma_next / sigma
    return keep, alpha_next - keep * alpha, torch.zeros_like(alpha), torch.zeros_like(alpha)


def _multistep(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Coefficients:
    """DPM-Solver++(2M): second order from the previous guess (Lu et al. 2022, Algorithm 2); first and last are DDIM."""
    keep, guess, _, fresh = _ddim(alpha, sigma, alpha_next, sigma_next)
    half_log_snr = (alpha / sigma).log()
    h = half_log_snr.diff()
    extrapolation = torch.zeros_like(alpha)
    extrapolation[1:-1] = h[1:] / (2 * h[:-1])  # 1 / (2 r)
    return keep, guess * (1 + extrapolation), -guess * extrapolation, fresh
