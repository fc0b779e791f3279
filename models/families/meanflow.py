"""MeanFlow: the average velocity of rectified flow over an interval of time, with which one call of the net samples.

    u(x_s, s, e, y) = 1 / (e - s) * integral from s to e of v(x_t, t, y) dt          (Geng et al. 2025, equation 3)

Time runs from noise at 0 to data at 1, as in `flow`. Two nets learn: `velocity` learns v by the loss of `flow`, and
`unet` learns u from paths that follow v, as in the distillation of Luhman & Luhman (2021, arXiv 2101.02388). The paper
gets u from its derivative and the noisy velocity of one image instead (equation 6); the end of a path has no noise. v
has classifier-free guidance, so that sampling with u needs none. Only `unet` is exported.

`unet` predicts x_u = x_s + (1 - s) u: for e = 1 the end of the path, for e = s the image that flow predicts. So both
nets can start from the weights of `flow` (`fit --start`); with `fixed_velocity` only `unet` goes on learning.

A mean of paths that the net cannot tell apart is blurred. With `game`, a discriminator compares the samples of one step
with data, as in `cgan`; Sauer et al. (2023, arXiv 2311.17042) join distillation and a game like this. A game makes
more odd samples, so that it goes with `truncation`.
"""

import math
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import noise, parallel
from models.adversarial import ProjectionDiscriminator
from models.base import About, Family, Range, Recipe, Rows, Terms
from models.denoisers import PATCH_HELP, denoiser, guided
from models.losses import (
    column,
    leading_share,
    mix_times,
    r1_r2_penalties,
    sample_log_snr,
    velocity_errors,
)
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
DISCRIMINATOR_WIDTH, GAMMA, PENALTY_SHARE = 32, 0.1, 0.25
"""Of the game: the settings of `cgan`."""


@dataclass(frozen=True)
class MeanFlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Nets at their largest size, a multiple of 8"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    patch: int = field(default=0, metadata={"help": PATCH_HELP})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images without their label"})
    guidance: float = field(default=1.2, metadata={"help": "guidance scale of the flow whose velocity is averaged"})
    fixed_velocity: bool = field(default=False, metadata={"help": "keep the velocity that the run starts with"})
    game: float = field(default=0.0, metadata={"help": "weight of the game against a discriminator; 0 plays none"})
    path_share: float = field(default=1.0, metadata={"help": "share of each batch for which a path is followed"})
    truncation: float = field(
        default=1.0, metadata={"help": "scale of the noise when sampling; below 1 fewer odd digits, and less variety"}
    )


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
    players = ("velocity", "discriminator", "unet")
    training_only = ("velocity", "discriminator")
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
        self.discriminator = (
            ProjectionDiscriminator(self.data_shape, DISCRIMINATOR_WIDTH, self.classes, config.levels)
            if config.game
            else nn.Identity()
        )

    def update_order(self) -> tuple[str, ...]:
        waiting = ("velocity",) * self.config.fixed_velocity + ("discriminator",) * (not self.config.game)
        return tuple(player for player in self.players if player not in waiting)

    def predict(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u [B, *data_shape] of states x at time s [B], for intervals of length e - s = span [B].

        The span enters beside the label, as sines that are 0 for span 0.
        """
        angle = math.pi / 2 * span[:, None] * torch.arange(1, SPAN_FEATURES + 1, device=x.device)
        return self.unet(x, time, torch.cat((label, SPAN_SCALE * angle.sin()), dim=1))

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        if player == "discriminator":
            return self._discriminator_loss(x, self.one_hot(label))
        paths = leading_share(x, self.config.path_share if player == "unet" else 1.0)
        count, device = len(paths), x.device
        kept = parallel.rand(count, device=device) >= self.config.drop_label
        hot = self.one_hot(label[:count]) * kept[:, None]
        eps = parallel.randn(*paths.shape, device=device)
        uniform = parallel.rand(count, device=device)
        if player == "velocity":
            time = mix_times(sample_log_snr(count, device).sigmoid(), uniform)
            predicted = self.velocity(torch.lerp(eps, x, column(time, x)), time, hot)
            return {"loss": velocity_errors(predicted, x, time).mean()}
        loss = self._path_loss(paths, eps, uniform, hot)
        if not self.config.game:
            return {"loss": loss}
        y = self.one_hot(label)
        game = F.softplus(self.discriminator(x, y) - self.discriminator(self.generate(y), y)).mean()
        return {"loss": loss + self.config.game * game, "path": loss, "game": game}

    def _path_loss(self, x: Tensor, eps: Tensor, uniform: Tensor, label: Tensor) -> Tensor:
        """The error of u over random intervals of the paths through states between eps and x [B, *data_shape]."""
        count, device = len(x), x.device
        length = MIN_SPAN + (1 - MIN_SPAN) * parallel.rand(count, device=device)
        span = torch.where(parallel.rand(count, device=device) < WHOLE_SHARE, 1.0, length)
        time = (1 - span) * uniform
        state = torch.lerp(eps, x, column(time, x))
        target = self.path_target(state, time, span, label)
        errors = velocity_errors(self.predict(state, time, span, label), target, time)
        return (errors.flatten(1).mean(1) + HUBER**2).sqrt().mean()

    def _discriminator_loss(self, x: Tensor, label: Tensor) -> Terms:
        """The loss of the discriminator of `cgan`, against samples of one step."""
        with torch.no_grad():
            generated = self.generate(label)
        margin = self.discriminator(x, label) - self.discriminator(generated, label)
        r1, r2 = r1_r2_penalties(lambda part: self.discriminator(part, label[: len(part)]), x, generated, PENALTY_SHARE)
        loss = F.softplus(-margin).mean() + GAMMA / 2 * (r1 + r2)
        return {"loss": loss, "margin": margin.mean(), "r1": r1, "r2": r2}

    def generate(self, label: Tensor) -> Tensor:
        """Samples of one step from fresh noise, one per label [B, classes]: [B, *data_shape]."""
        start = torch.zeros(len(label), device=label.device)
        eps = parallel.randn(len(label), *self.data_shape, device=label.device)
        return self.predict(eps, start, start + 1, label)

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
        return self.config.truncation * noise.initial(seed, index, self.data_shape)

    def step(self, rows: Rows) -> Tensor:
        time, span = rows.coefficients.unbind(1)
        predicted = self.predict(rows.state, time, span, rows.label).clamp(-1, 1)
        return torch.lerp(rows.state, predicted, column(span / (1 - time), predicted))

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The start and the length of each step's interval, [steps, 2]; all have the same length."""
        return torch.tensor([[k / steps, 1 / steps] for k in range(steps)])
