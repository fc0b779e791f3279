"""MeanFlow: the average velocity of rectified flow over an interval of time, with which one call of the net samples.

    u(x_s, s, e, y) = 1 / (e - s) * integral from s to e of v(x_t, t, y) dt          (Geng et al. 2025, equation 3)

Time runs from noise at 0 to data at 1, as in `flow`. Two nets learn: `velocity` learns v by the loss of `flow`, and
`unet` learns u from paths that follow v, as in the distillation of Luhman & Luhman (2021, arXiv 2101.02388). The paper
gets u from its derivative and the noisy velocity of one image instead (equation 6); the end of a path has no noise. v
has classifier-free guidance, so that sampling with u needs none. Only `unet` is exported.

`unet` predicts x_u = x_s + (1 - s) u: for e = 1 the end of the path, for e = s the image that flow predicts. So both
nets can start from the weights of `flow` (`fit --start`); with `fixed_velocity` only `unet` goes on learning.
"""

import math
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from models import noise, parallel
from models.base import About, Family, Range, Recipe, Rows, Terms
from models.denoisers import PATCH_HELP, denoiser, guided
from models.losses import column, mix_times, sample_log_snr, velocity_errors
from models.nets import LEVELS_HELP

PATH_STEPS = 5
"""Steps of Euler's method along a path. On MNIST that is better than Heun's method with as many calls of the net."""
WHOLE_SHARE = 0.75
"""Share of a batch's intervals that are the whole path from noise to data, which one step needs."""
MIN_SPAN = 1 / 16
"""The shortest interval in training; sampling has intervals of at least twice that."""
HUBER = 0.03
"""Errors of u longer than this count by their length, not its square, because a few paths are hard to learn. It is the
paper's adaptive weight with p = 0.5, and the loss of Song & Dhariwal (2023, arXiv 2310.14189)."""
SPAN_FEATURES, SPAN_SCALE = 8, 4.0
"""The number and amplitude of the features of e - s. At amplitude 1 the net hardly tells intervals apart at first."""


@dataclass(frozen=True)
class MeanFlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Nets at their largest size, a multiple of 8"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    patch: int = field(default=0, metadata={"help": PATCH_HELP})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images without their label"})
    guidance: float = field(default=1.2, metadata={"help": "guidance scale of the flow whose velocity is averaged"})
    fixed_velocity: bool = field(default=False, metadata={"help": "keep the velocity that the run starts with"})


class MeanFlow(Family):
    Config = MeanFlowConfig
    about = About(
        title="MeanFlow",
        formula="velocity: min E|v((1 - t) eps + t x, t, y) - (x - eps)|^2;  "
        "mean: min E|u(x_s, s, e, y) - (x_e - x_s) / (e - s)|^2,  dx/dt = v from x_s to x_e;  "
        "samples: eps + u(eps, 0, 1, y)",
        paper="Geng et al., Mean Flows for One-step Generative Modeling, arXiv 2505.13447; distillation of paths: "
        "Luhman & Luhman, arXiv 2101.02388; guidance: Ho & Salimans, arXiv 2207.12598; net that predicts x: Li & He, "
        "arXiv 2511.13720",
    )
    recipe = Recipe(epochs=1.2, batch=32, lr=1e-3, betas=(0.9, 0.99), ema=6_000, warmup=1_000, cosine=True)
    players = ("velocity", "unet")
    training_only = ("velocity",)
    starts = MappingProxyType({"unet": ("velocity", "unet")})
    conditional = True
    samples_label = True
    steps = Range(1, 8, 1)
    config: MeanFlowConfig

    def __init__(self, config: MeanFlowConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        settings = config.levels, config.patch
        self.velocity = denoiser(self.data_shape, config.width, self.classes, *settings)
        self.unet = denoiser(self.data_shape, config.width, self.classes + SPAN_FEATURES, *settings)

    def update_order(self) -> tuple[str, ...]:
        return ("unet",) if self.config.fixed_velocity else ("velocity", "unet")

    def predict(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u [B, *data_shape] of states x at time s [B], for intervals of length e - s = span [B].

        The span enters beside the label, as sines that are 0 for span 0.
        """
        angle = math.pi / 2 * span[:, None] * torch.arange(1, SPAN_FEATURES + 1, device=x.device)
        return self.unet(x, time, torch.cat((label, SPAN_SCALE * angle.sin()), dim=1))

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        count, device = len(x), x.device
        kept = parallel.rand(count, device=device) >= self.config.drop_label
        hot = self.one_hot(label) * kept[:, None]
        eps = parallel.randn(*x.shape, device=device)
        uniform = parallel.rand(count, device=device)
        if player == "velocity":
            time = mix_times(sample_log_snr(count, device).sigmoid(), uniform)
            predicted = self.velocity(torch.lerp(eps, x, column(time, x)), time, hot)
            return {"loss": velocity_errors(predicted, x, time).mean()}
        length = MIN_SPAN + (1 - MIN_SPAN) * parallel.rand(count, device=device)
        span = torch.where(parallel.rand(count, device=device) < WHOLE_SHARE, 1.0, length)
        time = (1 - span) * uniform
        state = torch.lerp(eps, x, column(time, x))
        target = self.path_target(state, time, span, hot)
        errors = velocity_errors(self.predict(state, time, span, hot), target, time)
        return {"loss": (errors.flatten(1).mean(1) + HUBER**2).sqrt().mean()}

    @torch.no_grad()
    def path_target(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u of states x at `time` [B], by a path over intervals of length `span` [B] that follows v."""
        state, step = x, span / PATH_STEPS
        for k in range(PATH_STEPS):
            state = state + column(step, x) * self._guided_velocity(state, time + k * step, label)
        return x + column((1 - time) / span, x) * (state - x)

    def _guided_velocity(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """v with classifier-free guidance."""
        scale = torch.full_like(time, self.config.guidance)
        predicted = guided(self.velocity, x, time, label, scale).clamp(-1, 1)
        return (predicted - x) / (1 - column(time, x))

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.initial(seed, index, self.data_shape)

    def step(self, rows: Rows) -> Tensor:
        time, span = rows.coefficients.unbind(1)
        predicted = self.predict(rows.state, time, span, rows.label).clamp(-1, 1)
        return torch.lerp(rows.state, predicted, column(span / (1 - time), predicted))

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The start and the length of each step's interval, [steps, 2]; all have the same length."""
        return torch.tensor([[k / steps, 1 / steps] for k in range(steps)])
