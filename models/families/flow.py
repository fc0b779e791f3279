"""Rectified flow: nearly straight paths from noise to image, which need few steps.

    x_t = (1 - t) eps + t x,   min  E |v_theta(x_t, t, y) - (x - eps)|^2          (Liu et al. 2023, equation 1)

The net predicts the image, which determines the velocity: v = (x_theta - x_t) / (1 - t). Images occupy few of the
dimensions that noise fills, so the image is easier to predict (Li & He 2025, arXiv 2511.13720; most t are sampled as
theirs).

Sampling integrates dx/dt = v from t = 0 to 1, with one call of the net per step. Euler's method takes one step per
interval, Heun's method two: the second returns to the start of the interval and leaves it with the mean of both
velocities. Both are linear in the state, the memory and the velocity, so a schedule is a table of coefficients.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from models import noise, parallel, updates
from models.base import About, Family, Range, Recipe, Rows, Terms, coefficient_columns
from models.denoisers import PATCH_HELP, denoiser, guided_rows
from models.losses import column, mix_times, sample_log_snr, velocity_errors
from models.nets import LEVELS_HELP

INVERSION_STEPS = 40


@dataclass(frozen=True)
class FlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at its largest size, a multiple of 8"})
    levels: int = field(default=0, metadata={"help": LEVELS_HELP})
    patch: int = field(default=0, metadata={"help": PATCH_HELP})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images without their label"})


class Flow(Family):
    """The state is the pair (x_t, memory) along the first axis: [B, 2, 28, 28].

    The second step of a Heun pair continues from the memory.
    """

    Config = FlowConfig
    about = About(
        title="Rectified flow",
        formula="min  E|v((1 - t) eps + t x, t, y) - (x - eps)|^2,  v = (x_theta - x_t) / (1 - t),  eps ~ N(0, I);  "
        "samples: dx/dt = v",
        paper="Liu et al., Flow Straight and Fast, arXiv 2209.03003; guidance: Ho & Salimans, arXiv 2207.12598; "
        "net that predicts x: Li & He, arXiv 2511.13720",
    )
    recipe = Recipe(epochs=12, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    samples_label = True  # without one, the unconditional network samples without guidance, which looks worse
    steps = Range(1, 200, 8)
    samplers = ("heun", "euler")
    guidance: Range[float] | None = Range(0.0, 10.0, 1.4)
    encodes = True
    inversion = MappingProxyType({"steps": INVERSION_STEPS, "sampler": "heun", "guidance": 1.0})
    config: FlowConfig

    def __init__(self, config: FlowConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.unet = denoiser(self.data_shape, config.width, classes, config.levels, config.patch)
        if not classes:
            self.guidance = None

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        t = mix_times(sample_log_snr(len(x), x.device).sigmoid(), parallel.rand(len(x), device=x.device))
        eps = parallel.randn(*x.shape, device=x.device)
        kept = parallel.rand(len(x), device=x.device) >= self.config.drop_label
        predicted = self.unet(torch.lerp(eps, x, column(t, x)), t, self.one_hot(label) * kept[:, None])
        return {"loss": velocity_errors(predicted, x, t).mean()}

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        x = noise.initial(seed, index, self.data_shape)
        return torch.cat((x, x), dim=1)

    def step(self, rows: Rows) -> Tensor:
        x, _ = rows.state.chunk(2, dim=1)
        predicted = guided_rows(self.unet, x, rows.coefficients[:, 0], rows)
        return updates.flow(rows.state, predicted, rows.coefficients)

    def decode(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=1)[0].clamp(-1, 1)

    def predicted(self, before: Tensor, after: Tensor, coefficients: Tensor) -> Tensor:
        time, state_step, from_state, _ = coefficient_columns(coefficients, before)
        x, memory = before.chunk(2, dim=1)
        velocity = (after.chunk(2, dim=1)[0] - torch.lerp(memory, x, from_state)) / state_step
        return (x + (1 - time) * velocity).clamp(-1, 1)

    def noised(self, x: Tensor, coefficients: Tensor, eps: Tensor) -> Tensor:
        """x_t on the straight path from eps to x; the memory of a Heun pair's second step is half a pair behind."""
        time, state_step, from_state, _ = coefficient_columns(coefficients, x)
        behind = time - (1 - from_state) * state_step
        return torch.cat(((1 - time) * eps + time * x, (1 - behind) * eps + behind * x), dim=1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """The state that inversion starts from: x before the last two steps of the schedule.

        At t = 1 nothing is known about eps, so the velocity of these two steps is taken to be x itself.
        """
        x = (1 - 2 / INVERSION_STEPS) * x
        return torch.cat((x, x), dim=1)

    def inversion_schedule(self) -> Tensor:
        """The same path in reverse, by Heun's method."""
        size = 2 / INVERSION_STEPS
        lines = []
        for k in range(INVERSION_STEPS // 2 - 1, 0, -1):
            lines += [[k * size, -size, 1.0, -size / 2], [(k - 1) * size, -size / 2, 0.0, -size / 2]]
        return torch.tensor(lines)

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """The coefficients of each step, [steps, 4].

        Time; the step size of the state; whether to continue from x (1) or from the memory (0); and the step size of
        the memory.

        `steps` counts calls of the net, uniform in time. Heun's method takes them in pairs and leaves the last one or
        two to Euler's method: the last step ends at the predicted image, and no call is at t = 1, where the velocity is
        undefined.
        """
        pairs = (steps - 1) // 2 if (sampler or self.samplers[0]) == "heun" else 0
        size = 1 / steps
        lines = []
        for k in range(0, 2 * pairs, 2):
            lines += [[k * size, 2 * size, 1.0, size], [(k + 2) * size, size, 0.0, size]]
        lines += [[k * size, size, 1.0, 0.0] for k in range(2 * pairs, steps)]
        return torch.tensor(lines)
