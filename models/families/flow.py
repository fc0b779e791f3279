"""Rectified flow: from noise to image along lines as straight as they can be, and so in few steps.

    x_t = (1 - t) eps + t x,   min  E |v_theta(x_t, t, y) - (x - eps)|^2          (Liu et al. 2023, equation 1)

The net guesses the image, and the slope follows: v = (x_theta - x_t) / (1 - t). Images fill few of the directions that
noise does, so that is the easier thing to say (Li & He 2025, arXiv 2511.13720; most of t is drawn as theirs is).

Drawing follows dx/dt = v from t = 0 to 1, a call of the net a link. Euler's method needs one link a stretch, Heun's
two: the second goes back and leaves again with the mean of both slopes. Both are linear in the state, what is
remembered and the slope, so a plan is a table of coefficients.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from models import noise, parallel
from models.base import About, Family, Range, Recipe, Rows, Terms, coefficient_columns
from models.losses import UNIFORM_SHARE, sample_log_snr
from models.nets import denoiser, guided

LEAST_GAP = 0.25
"""1 - t that the loss divides by, at least: less, and the last touches outweigh all else."""
INVERSION_STEPS = 40


@dataclass(frozen=True)
class FlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at 14x14, a multiple of 8"})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images shown without their label"})


class Flow(Family):
    """The state is the pair (x_t, where a Heun step's second link leaves from): [B, 2, 28, 28]."""

    Config = FlowConfig
    about = About(
        title="Rectified flow",
        formula="min  E|v((1 - t) eps + t x, t, y) - (x - eps)|^2,  v = (x_theta - x_t) / (1 - t),  eps ~ N(0, I);  "
        "draws: dx/dt = v",
        paper="Liu et al., Flow Straight and Fast, arXiv 2209.03003; guidance: Ho & Salimans, arXiv 2207.12598; "
        "net that guesses x: Li & He, arXiv 2511.13720",
    )
    recipe = Recipe(epochs=12, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    steps = Range(1, 200, 8)
    samplers = ("heun", "euler")
    guidance: Range[float] | None = Range(0.0, 10.0, 1.4)
    encodes = True
    inversion = MappingProxyType({"steps": INVERSION_STEPS, "sampler": "heun", "guidance": 1.0})
    config: FlowConfig

    def __init__(self, config: FlowConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.unet = denoiser(self.data_shape, config.width, classes)
        if not classes:
            self.guidance = None

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        early = sample_log_snr(len(x), x.device).sigmoid()
        evenly = parallel.rand(len(x), device=x.device)
        t = torch.where(parallel.rand(len(x), device=x.device) < UNIFORM_SHARE, evenly, early)
        eps = parallel.randn(*x.shape, device=x.device)
        kept = parallel.rand(len(x), device=x.device) >= self.config.drop_label
        at = t.view(-1, *[1] * (x.dim() - 1))
        guess = self.unet(torch.lerp(eps, x, at), t, self.one_hot(label) * kept[:, None])
        # Both slopes share x_t, so they differ as the guesses do, over 1 - t.
        return {"loss": ((guess - x) / (1 - at).clamp(min=LEAST_GAP)).square().mean()}

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        x = noise.initial(seed, index, self.data_shape)
        return torch.cat((x, x), dim=1)

    def step(self, rows: Rows) -> Tensor:
        time, ahead, kept, remembered = coefficient_columns(rows)
        x, memory = rows.state.chunk(2, dim=1)
        guess = guided(self.unet, x, time.flatten(), rows.label, rows.guidance).clamp(-1, 1)
        slope = (guess - x) / (1 - time)
        base = torch.lerp(memory, x, kept)
        return torch.cat((base + ahead * slope, base + remembered * slope), dim=1)

    def decode(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=1)[0].clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """Where the way back from x begins: before the plan's last two links.

        At t = 1 nothing is known of eps, so the slope is x itself; it holds for these.
        """
        x = (1 - 2 / INVERSION_STEPS) * x
        return torch.cat((x, x), dim=1)

    def inversion_schedule(self) -> Tensor:
        """The same path walked back, by Heun's steps."""
        size = 2 / INVERSION_STEPS
        lines = []
        for k in range(INVERSION_STEPS // 2 - 1, 0, -1):
            lines += [[k * size, -size, 1.0, -size / 2], [(k - 1) * size, -size / 2, 0.0, -size / 2]]
        return torch.tensor(lines)

    def schedule(self, steps: int, sampler: str | None = None) -> Tensor:
        """[steps, 4]: time, how far ahead, whether to leave from x (1) or the memory (0), how far to remember.

        `steps` counts calls of the net, among which time is shared evenly. Heun's method takes them in pairs, and
        leaves one or two to Euler's: the last arrives at the net's guess, and none stands at t = 1, which has no slope.
        """
        pairs = (steps - 1) // 2 if (sampler or self.samplers[0]) == "heun" else 0
        size = 1 / steps
        lines = []
        for k in range(0, 2 * pairs, 2):
            lines += [[k * size, 2 * size, 1.0, size], [(k + 2) * size, size, 0.0, size]]
        lines += [[k * size, size, 1.0, 0.0] for k in range(2 * pairs, steps)]
        return torch.tensor(lines)
