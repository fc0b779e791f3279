"""Denoising diffusion: a variational auto-encoder of many steps whose encoder only adds noise.

The forward chain has a closed form, q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)   (Ho et al. 2020, equation 4),
and the variational bound comes down to guessing the noise                                (equation 14)

    E || eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y) ||^2.

Drawing walks back from x_T ~ N(0, I). Every sampler here is linear in the state x, the net's guess of x_0, its previous
guess and fresh noise, so a plan is a table of coefficients and rows of different samplers share one batch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise
from models.base import About, Family, Range, Recipe, Rows, Terms
from models.nets import UNet, guided

INVERSION_STEPS = 50


@dataclass(frozen=True)
class DDPMConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at 14x14, a multiple of 8"})
    timesteps: int = field(default=1000, metadata={"help": "T, the length of the forward chain"})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images shown without their label"})


class DDPM(Family):
    """The state is the pair (x_t, the previous guess of x_0): [B, 2, 28, 28]."""

    Config = DDPMConfig
    about = About(
        title="Denoising diffusion probabilistic model",
        formula="min  E ||eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t, y)||^2,  eps ~ N(0, I)",
        paper="Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239; guidance: Ho & Salimans, "
        "arXiv 2207.12598; ddim: Song et al., arXiv 2010.02502; dpm++2m: Lu et al., arXiv 2211.01095",
    )
    recipe = Recipe(epochs=20, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    steps = Range(1, 1000, 20)
    samplers = ("dpm++2m", "ddim", "ddpm")
    guidance = Range(0.0, 10.0, 2.5)
    encodes = True
    config: DDPMConfig

    def __init__(self, config: DDPMConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        # No chain has more links than times to stop at.
        self.steps = Range(1, config.timesteps, min(DDPM.steps.default, config.timesteps))
        self.inversion = {"steps": min(INVERSION_STEPS, config.timesteps), "sampler": "ddim", "guidance": 1.0}
        self.unet = UNet(config.width, classes)
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", cosine_schedule(config.timesteps), persistent=False)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        t = torch.randint(self.config.timesteps, (len(x),), device=x.device)
        eps = torch.randn_like(x)
        kept = torch.rand(len(x), device=x.device) >= self.config.drop_label
        y = self.one_hot(label) * kept[:, None]
        guess = self.unet(self.diffuse(x, t, eps), (t + 1) / self.config.timesteps, y)
        return {"loss": (eps - guess).square().mean()}

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of q(x_t | x_0 = x) for t [B] in 0..T-1 and eps ~ N(0, I) shaped like x."""
        abar = self.alphas_cumprod[t].view(-1, *[1] * (x.dim() - 1))
        return abar.sqrt() * x + (1 - abar).sqrt() * eps

    def start(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        x = noise.first(seed, index, self.data_shape)
        return torch.cat((x, torch.zeros_like(x)), dim=1)

    def step(self, rows: Rows) -> Tensor:
        time, alpha, sigma, *coefficients = rows.link.t().reshape(-1, len(rows.link), 1, 1, 1).unbind()
        keep, guess, previous, fresh = coefficients
        x, x_0_previous = rows.state.chunk(2, dim=1)
        eps = guided(self.unet, x, time.flatten(), rows.label, rows.guidance)
        # Pixels lie in [-1, 1]; early steps divide by a small alpha, and would throw the guess far outside.
        x_0 = ((x - sigma * eps) / alpha).clamp(-1, 1)
        state = keep * x + guess * x_0 + previous * x_0_previous
        if bool(fresh.any()):
            state = state + fresh * noise.normal(rows.seed, rows.index, rows.step, self.data_shape)
        return torch.cat((state, x_0), dim=1)

    def decode(self, state: Tensor) -> Tensor:
        return state[:, :1].clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """The noise that leads to x: DDIM's deterministic chain walked back (Song et al. 2021, section 4.3)."""
        for time, alpha, sigma, keep, guess, *_ in self.plan(self.inversion["steps"], "ddim").to(x.device).flip(0):
            eps = self.unet(x, time.expand(len(x)), label)
            # The link was x_s = keep x_t + guess x_0 with x_0 = (x_t - sigma eps) / alpha.
            x = (x + guess * sigma / alpha * eps) / (keep + guess / alpha)
        return torch.cat((x, torch.zeros_like(x)), dim=1)

    def plan(self, steps: int, sampler: str | None = None) -> Tensor:
        """[steps, 7]: time in (0, 1], alpha, sigma of x_t, then what multiplies x_t, x_0, the previous x_0 and noise.

        Times begin at T (Lin et al., arXiv 2305.08891: starting anywhere but in full noise shifts the images'
        brightness) and lie denser towards the image: on Gaussians of known score that halves the error of even ones.
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
        return torch.stack(((t + 1) / total, alpha, sigma, *coefficients), dim=1).float()


Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""What multiplies x_t, x_0, the previous x_0 and fresh noise in each link, [steps] each."""


def cosine_schedule(timesteps: int) -> Tensor:
    """abar_t = cos(theta_t)^2 [T] with theta evenly spaced (Nichol & Dhariwal 2021, equation 17).

    The ends are cut where the signal, or the noise, is below what 8-bit pixels can tell.
    """
    theta = torch.linspace(0.01, 0.98 * math.pi / 2, timesteps, dtype=torch.float64)
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
