"""Where the codes of four auto-encoders lie, and what that means for drawing from N(0, I).

    AE:   min E|x - g(f(x))|^2                              codes lie anywhere
    SAE:  ... - lambda E log softmax(h(f(x)))_y             codes of a digit lie by themselves, anywhere
    SWAE: ... + lambda SW_2^2(f(x), N(0, I))                codes lie as N(0, I) does
    VAE:  -E_q log p(x|z) + KL(q(z|x) || N(0, I))           so do codes drawn from q(z|x), nearly

Codes have two numbers, so that they can be seen. SW_2^2 is the mean over directions of the squared distance of sorted
projections (Bonneel et al. 2015).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from models.base import Family, Recipe
from models.families.ae import AE, AEConfig
from models.families.supervised_ae import SupervisedAE, SupervisedAEConfig
from models.families.swae import SWAE, SWAEConfig
from models.families.vae import VAE, VAEConfig
from models.losses import sliced_wasserstein
from models.pixels import to_unit
from training import data
from training.data import Dataset
from training.lab import plots
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_most, reported
from training.lab.fitting import begin, iterations

WIDTH = 16
BATCH = 256
KINDS: dict[str, tuple[type[Family], Any]] = {
    "AE": (AE, AEConfig(latent=2, width=WIDTH)),
    "supervised AE": (SupervisedAE, SupervisedAEConfig(latent=2, width=WIDTH)),
    "SWAE": (SWAE, SWAEConfig(latent=2, width=WIDTH)),
    "VAE": (VAE, VAEConfig(latent=2, width=WIDTH)),
}
CODES = 2000
"""Digits whose codes are looked at: of the test split, which no encoder has seen."""
DIRECTIONS = 64
SIDE = 12
"""Of the grid of decoded codes."""
SHARES = {"SWAE": 0.1, "VAE": 0.1}
"""What of the plain auto-encoder's distance these may have at most."""


def trained(kind: type[Family], config: Any, dataset: Dataset, steps: int, seed: int) -> Family:
    """The family on images taken as points, without the density that it would be drawn from."""
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, lr=2e-3, ema=20 * BATCH, cosine=True)
    trainer = begin(kind, config, dataset, recipe, seed)
    while trainer.images < trainer.total_images:
        trainer.train_step()
    return trainer.average


def codes(family: Family, x: Tensor, seed: int) -> Tensor:
    """Codes [N, 2] of x [N, 784]; a VAE's are drawn from q(z|x)."""
    if not isinstance(family, VAE):
        return family.encode(x, torch.zeros(len(x), 0))
    mu, log_var = family.posterior(x)
    return mu + torch.randn(mu.shape, generator=Generator().manual_seed(seed)) * (log_var / 2).exp()


def to_prior(z: Tensor, seed: int) -> float:
    """SW_2 of codes z [N, 2] and as many draws from N(0, I)."""
    generator = Generator().manual_seed(1000 + seed)
    theta = F.normalize(torch.randn(2, DIRECTIONS, generator=generator), dim=0)
    return math.sqrt(float(sliced_wasserstein(z, torch.randn(z.shape, generator=generator), theta)))


def decoded(family: Any, z: Tensor) -> Tensor:
    """g(z) in [-1, 1]: [N, 784]."""
    out = family.decoder(z)
    return 2 * out.sigmoid() - 1 if isinstance(family, VAE) else out.tanh()


def quantiles() -> Tensor:
    """Codes [SIDE^2, 2] that N(0, I) puts evenly: rows from the top down, then columns from left to right."""
    line = torch.special.ndtri((torch.arange(SIDE) + 0.5) / SIDE)
    return torch.cartesian_prod(line.flip(0), line).flip(1)


def measure(setting: Setting) -> Findings:
    """Train all four, and measure where their codes lie."""
    loaded = data.load(setting.data, setting.data_root, "train")
    count = 5000 if setting.quick else 20_000
    dataset = data.make("points", to_unit(loaded.images[:count]).flatten(1), loaded.labels[:count], loaded.classes)
    test = data.load(setting.data, setting.data_root, "test")
    x, label = to_unit(test.images[:CODES]).flatten(1), test.labels[:CODES]
    shown: dict[str, Any] = {"label": label}
    distance: dict[str, float] = {}
    numbers: list[Number] = []
    for name, (kind, config) in KINDS.items():
        family = trained(kind, config, dataset, 300 if setting.quick else 3000, setting.seed)
        with torch.inference_mode():
            z = codes(family, x, setting.seed)
            back = decoded(family, z)
            distance[name] = to_prior(z, setting.seed)
            grid = decoded(family, quantiles())
        lost = float((back - x).square().sum() / (x - x.mean(0)).square().sum())
        numbers.append(reported(f"{name}: reconstruction error of held-out digits, of their variance", lost))
        shown[name] = {"codes": z.clone(), "grid": ((grid + 1) * 127.5).to(torch.uint8)}
    floor = to_prior(torch.randn(len(x), 2, generator=Generator().manual_seed(setting.seed)), setting.seed)
    numbers.append(reported("SW_2 of two clouds of N(0, I)", floor, "the floor"))
    for name in KINDS:
        what = f"{name}: SW_2 of codes to N(0, I)"
        if name in SHARES:
            bound = SHARES[name] * distance["AE"]
            numbers.append(at_most(what, distance[name], bound, f"{SHARES[name]:g} of the AE's: its loss asks for it"))
        else:
            numbers.append(reported(what, distance[name], "nothing asks for it"))
    return Findings(tuple(numbers), shown)


def draw(found: Sequence[Findings]) -> list[Picture]:
    """The clouds of codes, and what N(0, I) decodes to."""
    shown = found[0].shown
    return [_clouds(shown), _grids(shown)]


def _clouds(shown: Any) -> Picture:
    fig, axes = plots.figure(2, 4, width=4.0, height=3.9)
    label = shown["label"].numpy()
    colors = plots.TEN[label]
    circle = np.linspace(0, 2 * np.pi, 100)
    for column, name in enumerate(KINDS):
        z = shown[name]["codes"].numpy()
        for row, reach in enumerate((1.1 * float(np.abs(z).max()), 3.2)):
            panel = axes[row, column]
            panel.scatter(*z.T, s=5, c=colors, linewidths=0, alpha=0.8)
            for radius in (1, 2):
                panel.plot(radius * np.cos(circle), radius * np.sin(circle), color=plots.BLACK, linewidth=1.2)
            plots.plane(panel, name if row == 0 else f"{name}, near N(0, I)", reach)
            panel.set(xlabel="$z_1$", ylabel="$z_2$")
    for k in range(10):
        axes[0, 0].scatter([], [], s=40, color=plots.TEN[k], label=str(k))
    fig.legend(loc="outside right center", title="digit")
    return Picture(
        "latent.png",
        "Codes of 2,000 held-out digits; circles: one and two deviations of N(0, I). Above all of them, below those "
        "near the prior. A VAE's are drawn from q(z|x).",
        plots.png(fig),
    )


def _grids(shown: Any) -> Picture:
    fig, axes = plots.figure(1, 4, width=4.0, height=4.2)
    for panel, name in zip(axes[0], KINDS, strict=True):
        grid = shown[name]["grid"].unflatten(1, (28, 28)).unflatten(0, (SIDE, SIDE))
        panel.imshow(grid.transpose(1, 2).flatten(2).flatten(0, 1).numpy(), cmap="gray", vmin=0, vmax=255)
        panel.set(title=name, xticks=[], yticks=[])
        panel.grid(False)
    return Picture(
        "latent_grids.png",
        "What codes decode to that lie as N(0, I) has them, at even quantiles of either number.",
        plots.png(fig),
    )


EXPERIMENT = Experiment(
    title="Codes need a density",
    claim="An auto-encoder's codes need a density to draw from; the sliced-Wasserstein and the variational auto-encoder "
    "have their codes lie as N(0, I) does.",
    method="The families ae, supervised_ae, swae and vae with codes of two numbers, on digits taken as points of 784 "
    "numbers: where the codes of held-out digits lie, how far that is from N(0, I) by the sliced Wasserstein distance, "
    "and what codes from N(0, I) decode to.",
    measure=measure,
    draw=draw,
    digits=True,
)
