"""Rectified flow: from noise to image along lines as straight as they can be, and so in few steps.

    x_t = (1 - t) eps + t x,   min  E |v_theta(x_t, t, y) - (x - eps)|^2          (Liu et al. 2023, equation 1)

Drawing follows dx/dt = v_theta from t = 0 to 1, a call of the net a link. Euler's method needs one link a stretch,
Heun's two: the second goes back and leaves again with the mean of both slopes. Both are linear in the state, what is
remembered and the slope, so a plan is a table of coefficients.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from models import noise
from models.base import About, Family, Range, Recipe, Rows, Terms
from models.nets import UNet, guided

INVERSION_STEPS = 20


@dataclass(frozen=True)
class FlowConfig:
    width: int = field(default=32, metadata={"help": "channels of the U-Net at 14x14, a multiple of 8"})
    drop_label: float = field(default=0.1, metadata={"help": "share of training images shown without their label"})


class Flow(Family):
    """The state is the pair (x_t, where a Heun step's second link leaves from): [B, 2, 28, 28]."""

    Config = FlowConfig
    about = About(
        title="Rectified flow",
        formula="min  E|v_theta((1 - t) eps + t x, t, y) - (x - eps)|^2,  eps ~ N(0, I);  draws: dx/dt = v_theta",
        paper="Liu et al., Flow Straight and Fast, arXiv 2209.03003; guidance: Ho & Salimans, arXiv 2207.12598",
    )
    recipe = Recipe(epochs=20, batch=128, lr=1e-3, ema=100_000, warmup=50_000, cosine=True)
    conditional = True
    steps = Range(1, 200, 8)
    samplers = ("heun", "euler")
    guidance = Range(0.0, 10.0, 1.5)
    encodes = True
    inversion = MappingProxyType({"steps": 2 * INVERSION_STEPS, "sampler": "heun", "guidance": 1.0})
    config: FlowConfig

    def __init__(self, config: FlowConfig, data_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__(config, data_shape, classes)
        self.unet = UNet(config.width, classes)

    def loss(self, player: str, x: Tensor, label: Tensor) -> Terms:
        # Evenly: a time scale with less of the early times leaves the digit, which is settled there, unlearnt.
        t = torch.rand(len(x), device=x.device)
        eps = torch.randn_like(x)
        kept = torch.rand(len(x), device=x.device) >= self.config.drop_label
        at = t.view(-1, *[1] * (x.dim() - 1))
        slope = self.unet(torch.lerp(eps, x, at), t, self.one_hot(label) * kept[:, None])
        return {"loss": (slope - (x - eps)).square().mean()}

    def start(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        x = noise.first(seed, index, self.data_shape)
        return torch.cat((x, x), dim=1)

    def step(self, rows: Rows) -> Tensor:
        time, ahead, kept, remembered = rows.link.t().reshape(-1, len(rows.link), 1, 1, 1).unbind()
        x, memory = rows.state.chunk(2, dim=1)
        slope = guided(self.unet, x, time.flatten(), rows.label, rows.guidance)
        base = torch.lerp(memory, x, kept)
        return torch.cat((base + ahead * slope, base + remembered * slope), dim=1)

    def decode(self, state: Tensor) -> Tensor:
        return state[:, :1].clamp(-1, 1)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        """The noise that leads to x: the same path walked back, by Heun's steps."""
        size = 1 / INVERSION_STEPS
        for k in range(INVERSION_STEPS, 0, -1):
            now, before = (torch.full((len(x),), at * size, device=x.device) for at in (k, k - 1))
            slope = self.unet(x, now, label)
            x = x - size / 2 * (slope + self.unet(x - size * slope, before, label))
        return torch.cat((x, x), dim=1)

    def plan(self, steps: int, sampler: str | None = None) -> Tensor:
        """[steps, 4]: time, how far ahead, whether to leave from x (1) or the memory (0), how far to remember.

        `steps` counts calls of the net. Heun's take two for each of steps // 2 stretches; an odd one is Euler's, last.
        """
        if (sampler or self.samplers[0]) == "euler":
            return torch.tensor([[k / steps, 1 / steps, 1.0, 0.0] for k in range(steps)])
        size = 2 / steps
        lines = []
        for k in range(steps // 2):
            lines += [[k * size, size, 1.0, size / 2], [(k + 1) * size, size / 2, 0.0, size / 2]]
        if steps % 2:
            lines.append([1 - size / 2, size / 2, 1.0, 0.0])
        return torch.tensor(lines)
