"""MeanFlow: the average velocity of rectified flow over an interval of time, with which one call of the net samples.

    u(x_s, s, e) = 1 / (e - s) * integral from s to e of v(x_t, t) dt          (Geng et al. 2025, equation 3)

Time runs from noise at 0 to data at 1, as in `flow`. The net predicts x_u = x_s + (1 - s) u: for e = 1 the end of the
path, for e = s the image that flow predicts, so that the weights of `flow` are a good start (`fit --start`).

The net learns u from itself, by three kinds of rows in each batch:

- e = s: flow's own loss. Then u is the velocity v.
- e - s = SHORT_SPAN: u is the velocity at the middle of the path, to which half a step with v leads. Here v has
  classifier-free guidance, so that sampling needs none.
- longer: u is the mean of u over the two halves of the interval. The integral is additive, which determines u without
  the derivative of equation 6 in the paper (Guo et al. 2025, arXiv 2507.16884; shortcut models, arXiv 2410.12557).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import noise, parallel
from models.base import About, Family, Range, Recipe, Rows, Terms, coefficient_columns
from models.denoisers import PATCH_HELP, denoiser
from models.losses import UNIFORM_SHARE, sample_log_snr
from models.nets import LEVELS_HELP

INSTANT_SHARE, SHORT_SHARE = 0.2, 0.2
"""Shares of a batch's rows with e = s, and with the shortest interval; the others have longer ones."""
SHORT_SPAN = 1 / 8
WHOLE_SHARE = 0.5
"""Share of the longer intervals that are the whole path, which one step needs."""
MIN_REMAINING_TIME = 0.25
"""The lower bound on 1 - s in the loss, as in `flow`."""
SPAN_FEATURES, SPAN_SCALE = 8, 4.0
"""The number and amplitude of the features of e - s. At amplitude 1 the net hardly tells intervals apart at first."""


@dataclass(frozen=True)
class MeanFlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at its largest size, a multiple of 8"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    patch: int = field(default=0, metadata={"help": PATCH_HELP})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images without their label"})
    guidance: float = field(default=1.2, metadata={"help": "guidance scale of the flow whose velocity is averaged"})


class MeanFlow(Family):
    Config = MeanFlowConfig
    about = About(
        title="MeanFlow",
        formula="min  E|u(x_s, s, e, y) - (u(x_s, s, m, y) + u(x_m, m, e, y)) / 2|^2,  m = (s + e) / 2,  "
        "u(x_s, s, s, y) = v;  samples: eps + u(eps, 0, 1)",
        paper="Geng et al., Mean Flows for One-step Generative Modeling, arXiv 2505.13447; loss without a derivative: "
        "Guo et al., SplitMeanFlow, arXiv 2507.16884; guidance: Ho & Salimans, arXiv 2207.12598; "
        "net that predicts x: Li & He, arXiv 2511.13720",
    )
    recipe = Recipe(epochs=4, batch=64, lr=5e-4, betas=(0.9, 0.99), ema=20_000, warmup=3_000, cosine=True)
    conditional = True
    samples_label = True
    steps = Range(1, 16, 1)
    config: MeanFlowConfig

    def __init__(self, config: MeanFlowConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.unet = denoiser(self.data_shape, config.width, self.classes + SPAN_FEATURES, config.levels, config.patch)

    def predict(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u [B, *data_shape] of states x at time s [B], for intervals of length e - s = span [B].

        The span enters beside the label as sines that are 0 for span 0.
        """
        angle = math.pi / 2 * span[:, None] * torch.arange(1, SPAN_FEATURES + 1, device=x.device)
        return self.unet(x, time, torch.cat((label, SPAN_SCALE * angle.sin()), dim=1))

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        count = len(x)
        instant = math.ceil(INSTANT_SHARE * count)
        short = min(math.ceil(SHORT_SHARE * count), count - instant)
        parts = [instant, short, count - instant - short]
        span = self._spans(parts, x.device)
        uniform = (1 - span) * parallel.rand(count, device=x.device)
        noisy = sample_log_snr(count, x.device).sigmoid()
        is_uniform = (span > 0) | (parallel.rand(count, device=x.device) < UNIFORM_SHARE)
        time = torch.where(is_uniform, uniform, noisy)
        kept = parallel.rand(count, device=x.device) >= self.config.drop_label
        hot = self.one_hot(label) * kept[:, None]
        eps = parallel.randn(*x.shape, device=x.device)
        state = torch.lerp(eps, x, _column(time, x))
        with torch.no_grad():
            _, *others = zip(*(tensor.split(parts) for tensor in (state, time, span, hot)), strict=True)
            over = zip((self._over_short, self._over_long), others, strict=True)
            target = torch.cat((x[:instant], *(average(*rows) for average, rows in over if len(rows[0]))))
        remaining = (1 - _column(time, x)).clamp(min=MIN_REMAINING_TIME)
        errors = ((self.predict(state, time, span, hot) - target) / remaining).square()
        return {"loss": errors.mean()}

    def _spans(self, parts: list[int], device: torch.device) -> Tensor:
        """The length of each row's interval: [B]. `parts` are the numbers of rows of each kind."""
        instant, short, long = parts
        spread = SHORT_SPAN ** parallel.rand(long, device=device)
        whole = parallel.rand(long, device=device) < WHOLE_SHARE
        none = torch.zeros(instant, device=device)
        return torch.cat((none, none.new_full((short,), SHORT_SPAN), torch.where(whole, 1.0, spread)))

    def _over_short(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u over short intervals: by the guided velocity in the middle, which the one at the start leads to."""
        half = span / 2
        middle = x + _column(half, x) * self._guided_velocity(x, time, label)
        return x + (1 - _column(time, x)) * self._guided_velocity(middle, time + half, label)

    def _over_long(self, x: Tensor, time: Tensor, span: Tensor, label: Tensor) -> Tensor:
        """x_u over long intervals: by the mean of both halves' average velocities."""
        half = span / 2
        first = _velocity(x, time, self.predict(x, time, half, label))
        middle = x + _column(half, x) * first
        second = _velocity(middle, time + half, self.predict(middle, time + half, half, label))
        return x + (1 - _column(time, x)) * (first + second) / 2

    def _guided_velocity(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        none = torch.zeros_like(time)
        labelled = self.predict(x, time, none, label)
        unlabelled = self.predict(x, time, none, torch.zeros_like(label))
        return _velocity(x, time, unlabelled + self.config.guidance * (labelled - unlabelled))

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.initial(seed, index, self.data_shape)

    def step(self, rows: Rows) -> Tensor:
        time, span = rows.coefficients.unbind(1)
        predicted = self.predict(rows.state, time, span, rows.label).clamp(-1, 1)
        return torch.lerp(rows.state, predicted, _column(span / (1 - time), predicted))

    def predicted(self, before: Tensor, after: Tensor, coefficients: Tensor) -> Tensor:
        time, span = coefficient_columns(coefficients, before)
        return (before + (1 - time) / span * (after - before)).clamp(-1, 1)

    def noised(self, x: Tensor, coefficients: Tensor, eps: Tensor) -> Tensor:
        """x_s on the straight path from eps to x."""
        time, _ = coefficient_columns(coefficients, x)
        return torch.lerp(eps, x, time)

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The start and the length of each step's interval, [steps, 2]; all have the same length."""
        return torch.tensor([[k / steps, 1 / steps] for k in range(steps)])


def _velocity(x: Tensor, time: Tensor, predicted: Tensor) -> Tensor:
    """The velocity from states x at `time` that the image `predicted`, cut off at [-1, 1], implies."""
    return (predicted.clamp(-1, 1) - x) / (1 - _column(time, x))


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Numbers [B] in the shape that multiplies x [B, ...]."""
    return values.view(-1, *[1] * (x.dim() - 1))
