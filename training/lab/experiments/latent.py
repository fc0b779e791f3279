"""The codes of four auto-encoders, and how well N(0, I) describes them.

    AE:   min E|x - g(f(x))|^2                              any distribution of codes
    SAE:  ... - lambda E log softmax(h(f(x)))_y             any distribution; separate clusters of the digits
    SWAE: ... + lambda SW_2^2(f(x), N(0, I))                codes follow N(0, I)
    VAE:  -E_q log p(x|z) + KL(q(z|x) || N(0, I))           codes sampled from q(z|x) nearly follow N(0, I)

Codes have two dimensions, so that they can be plotted. SW_2^2 is the mean over directions of the squared distance of
sorted projections (Bonneel et al. 2015).
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
from training.lab.fitting import iterations, load_digits, make_trainer

WIDTH = 16
BATCH = 256
KINDS: dict[str, tuple[type[Family], Any]] = {
    "AE": (AE, AEConfig(latent=2, width=WIDTH)),
    "supervised AE": (SupervisedAE, SupervisedAEConfig(latent=2, width=WIDTH)),
    "SWAE": (SWAE, SWAEConfig(latent=2, width=WIDTH)),
    "VAE": (VAE, VAEConfig(latent=2, width=WIDTH)),
}
CODES = 2000
"""Digits of the test split whose codes are measured."""
DIRECTIONS = 64
SIDE = 12
"""Rows and columns of the grid of decoded codes."""
SHARES = {"SWAE": 0.1, "VAE": 0.1}
"""Upper bounds of the distance to N(0, I), as a share of the plain auto-encoder's."""


def trained(kind: type[Family], config: Any, dataset: Dataset, steps: int, seed: int) -> Family:
    """The family trained on images as points, without fitting a prior."""
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, lr=2e-3, ema=20 * BATCH, cosine=True)
    trainer = make_trainer(kind, config, dataset, recipe, seed)
    while trainer.images < trainer.total_images:
        trainer.train_step()
    return trainer.average


def codes(family: Family, x: Tensor, seed: int) -> Tensor:
    """Codes [N, 2] of x [N, 784]; a VAE's are sampled from q(z|x)."""
    if not isinstance(family, VAE):
        return family.encode(x, torch.zeros(len(x), 0))
    mu, log_var = family.posterior(x)
    return mu + torch.randn(mu.shape, generator=Generator().manual_seed(seed)) * (log_var / 2).exp()


def distance_to_prior(z: Tensor, seed: int) -> float:
    """SW_2 between codes z [N, 2] and as many samples from N(0, I)."""
    generator = Generator().manual_seed(1000 + seed)
    theta = F.normalize(torch.randn(2, DIRECTIONS, generator=generator), dim=0)
    return math.sqrt(float(sliced_wasserstein(z, torch.randn(z.shape, generator=generator), theta)))


def decoded(family: Any, z: Tensor) -> Tensor:
    """g(z) in [-1, 1]: [N, 784]."""
    out = family.decoder(z)
    return 2 * out.sigmoid() - 1 if isinstance(family, VAE) else out.tanh()


def quantiles() -> Tensor:
    """Codes [SIDE^2, 2] at even quantiles of N(0, I): rows from top to bottom, then columns from left to right."""
    line = torch.special.ndtri((torch.arange(SIDE) + 0.5) / SIDE)
    return torch.cartesian_prod(line.flip(0), line).flip(1)


def measure(setting: Setting) -> Findings:
    """Train all four auto-encoders, and measure the distance of their codes to N(0, I)."""
    loaded = load_digits(setting, "train")
    count = 5000 if setting.quick else 20_000
    dataset = data.make("points", to_unit(loaded.images[:count]).flatten(1), loaded.labels[:count], loaded.classes)
    test = load_digits(setting, "test")
    x, label = to_unit(test.images[:CODES]).flatten(1), test.labels[:CODES]
    plot_data: dict[str, Any] = {"label": label}
    distance: dict[str, float] = {}
    numbers: list[Number] = []
    for name, (kind, config) in KINDS.items():
        family = trained(kind, config, dataset, 300 if setting.quick else 3000, setting.seed)
        with torch.inference_mode():
            z = codes(family, x, setting.seed)
            back = decoded(family, z)
            distance[name] = distance_to_prior(z, setting.seed)
            grid = decoded(family, quantiles())
        error = float((back - x).square().sum() / (x - x.mean(0)).square().sum())
        numbers.append(reported(f"{name}: reconstruction error of held-out digits / their variance", error))
        plot_data[name] = {"codes": z.clone(), "grid": ((grid + 1) * 127.5).to(torch.uint8)}
    baseline = distance_to_prior(torch.randn(len(x), 2, generator=Generator().manual_seed(setting.seed)), setting.seed)
    numbers.append(reported("SW_2 between two samples of N(0, I)", baseline, "baseline"))
    for name in KINDS:
        what = f"{name}: SW_2 between codes and N(0, I)"
        if name in SHARES:
            bound = SHARES[name] * distance["AE"]
            numbers.append(at_most(what, distance[name], bound, f"{SHARES[name]:g} of the AE's: the loss requires it"))
        else:
            numbers.append(reported(what, distance[name], "not part of the loss"))
    return Findings(tuple(numbers), plot_data)


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the codes, and the images that codes from N(0, I) decode to."""
    plot_data = findings[0].plot_data
    return [_codes(plot_data), _grids(plot_data)]


def _codes(plot_data: Any) -> Picture:
    fig, axes = plots.figure(2, 4, width=4.0, height=3.9)
    label = plot_data["label"].numpy()
    colors = plots.TEN[label]
    circle = np.linspace(0, 2 * np.pi, 100)
    for column, name in enumerate(KINDS):
        z = plot_data[name]["codes"].numpy()
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
        "Codes of 2,000 held-out digits; the circles are one and two deviations of N(0, I). Top: all codes. Bottom: "
        "the codes near the prior. A VAE's codes are sampled from q(z|x).",
        plots.png(fig),
    )


def _grids(plot_data: Any) -> Picture:
    fig, axes = plots.figure(1, 4, width=4.0, height=4.2)
    for panel, name in zip(axes[0], KINDS, strict=True):
        grid = plot_data[name]["grid"].unflatten(1, (28, 28)).unflatten(0, (SIDE, SIDE))
        panel.imshow(grid.transpose(1, 2).flatten(2).flatten(0, 1).numpy(), cmap="gray", vmin=0, vmax=255)
        panel.set(title=name, xticks=[], yticks=[])
        panel.grid(False)
    return Picture(
        "latent_grids.png",
        "The images that codes at even quantiles of N(0, I) decode to.",
        plots.png(fig),
    )


EXPERIMENT = Experiment(
    title="Codes need a density",
    claim="To sample from an auto-encoder, its codes need a density; the sliced-Wasserstein and the variational "
    "auto-encoder train their codes to follow N(0, I).",
    method="The families ae, supervised_ae, swae and vae with two-dimensional codes, on digits as points of 784 "
    "numbers: the codes of held-out digits, their sliced Wasserstein distance to N(0, I), and the images that codes "
    "from N(0, I) decode to.",
    measure=measure,
    draw=draw,
    digits=True,
)
