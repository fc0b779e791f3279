"""Mode collapse: which GANs generate all of many narrow modes.

A mode is covered if at least one of 2,500 samples lies within three deviations of its centre; a sample is good if it
lies that close to any centre. The reverse KL compares the distribution q of the samples' nearest centres with the
uniform distribution over the K centres:

    KL(q, uniform) = sum_k q_k log(K q_k)                    0: all modes equally;  log K: a single mode
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Family, Recipe
from models.families.dcgan import DCGAN, DCGANConfig
from models.families.gan import GAN, GANConfig
from models.families.wgan_gp import WGANGP, WGANGPConfig
from models.nets import MLP
from training.lab import fitting, plots
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_least, near, reported
from training.lab.plane import Magnified, PlaneGAN
from training.lab.shapes import Gaussians, grid, ring
from training.loop import Trainer

SAMPLES = 2500
FRAMES = 24
TARGETS = {"ring": ring(), "grid": grid()}


class Pairs(nn.Module):
    """Joins points [B, 2] in pairs: [B / 2, 4]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2)).flatten(1)


class PacGAN2(GAN):
    """The lecture's GAN with a D that classifies pairs of points, and so detects points that are too similar."""

    def __init__(self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), Pairs(), MLP(2 * math.prod(data_shape), 256, 128, 1))


class PlaneWGANGP(WGANGP):
    """The production family with magnified points."""

    def __init__(self, config: WGANGPConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.critic = nn.Sequential(Magnified(), self.critic)


class PlaneDCGAN(DCGAN):
    """The production family with magnified points; its relativistic loss has the penalties R1 and R2."""

    def __init__(self, config: DCGANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), self.discriminator)


@dataclass(frozen=True)
class Player:
    """A family and its training."""

    kind: type[Family]
    config: Any
    iterations: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)

    def train(self, target: Gaussians, seed: int, share: float, watch: Callable[[Trainer], None] | None) -> Family:
        """The family after `share` of its iterations on 50,000 points of `target`."""
        dataset = fitting.points(target.sample(50_000, seed))
        batch = 128
        order = self.kind(self.config, (2,), 0).update_order()
        epochs = fitting.iterations(int(share * self.iterations), batch, dataset, order.count(order[0]))
        recipe = Recipe(epochs, batch, self.lr, self.betas, cosine=True)
        return fitting.fit(self.kind, self.config, dataset, recipe, seed, watch)


PLAIN: dict[str, Any] = {"latent": 2, "groups": 0, "truncation": 1.0, "penalty_share": 1.0, "generator_width": 32}
GROUPS: dict[str, Any] = {**PLAIN, "latent": 52, "groups": 50, "sharpness": 300.0}
GAME: dict[str, Any] = {"gamma": 1e-3, "discriminator_width": 32, "discriminator_pace": 1.0}
PLAYERS = {
    "GAN": Player(PlaneGAN, GANConfig(latent=2), 4000),
    "PacGAN2": Player(PacGAN2, GANConfig(latent=2), 4000),
    "WGAN-GP": Player(PlaneWGANGP, WGANGPConfig(**PLAIN, penalty=0.1, critic_steps=3), 2000),
    "R1+R2": Player(PlaneDCGAN, DCGANConfig(**PLAIN, **GAME), 2500),
    "R1+R2, groups": Player(PlaneDCGAN, DCGANConfig(**GROUPS, **{**GAME, "gamma": 3e-4}), 5500),
}
BEST = "R1+R2, groups"
WATCHED = ("GAN", "WGAN-GP", BEST)
PUBLISHED = {"GAN": 6.3, "PacGAN2": 7.9}
"""Modes of 8 of the ring, by Lin et al. (2018, arXiv 1712.04086), with other networks and longer training."""


def measure(setting: Setting) -> Findings:
    """Train every GAN on every target and count the modes."""
    share = 0.25 if setting.quick else 1.0
    names = (BEST,) if setting.quick else tuple(PLAYERS)
    numbers: list[Number] = []
    clouds: dict[str, dict[str, Any]] = {}
    frames: dict[str, list[Any]] = {}
    for shape, target in list(TARGETS.items())[: 1 if setting.quick else 2]:
        for name in names:
            recorded: list[Any] = []
            record = shape == "ring" and name in WATCHED and setting.seed == 0
            family = PLAYERS[name].train(target, setting.seed, share, recorder(recorded) if record else None)
            x = fitting.samples(family, SAMPLES)
            numbers += numbers_of(f"{shape}, {name}", target, x, setting.quick)
            clouds.setdefault(shape, {})[name] = x[:800].half().numpy()
            if record:
                frames[name] = recorded
    return Findings(tuple(numbers), {"clouds": clouds, "frames": frames})


def recorder(frames: list[Any]) -> Callable[[Trainer], None]:
    """A function that appends 400 samples to `frames` at moments that are denser at the start of the training."""

    def watch(trainer: Trainer) -> None:
        if trainer.images >= trainer.total_images * (len(frames) / (FRAMES - 1)) ** 2:
            frames.append(fitting.samples(trainer.average, 400).half().numpy())

    return watch


def numbers_of(title: str, target: Gaussians, x: Tensor, quick: bool) -> list[Number]:
    """Modes, share of good samples and reverse KL of samples x [N, 2]."""
    count = len(target.centres)
    nearest, deviations = target.nearest(x)
    good = deviations <= 3
    modes = float(len(nearest[good].unique()))
    share = float(good.double().mean())
    q = torch.bincount(nearest, minlength=count).double() / len(x)
    kl = float(torch.special.xlogy(q, count * q).sum())
    name = title.removeprefix("ring, ")
    if title == f"ring, {BEST}":
        return [
            near(f"{title}: modes", modes, count, 0, "all modes, for every seed"),
            at_least(
                f"{title}: share of good samples", share, 0.8 if quick else 0.95, "the requirement of this project"
            ),
            reported(f"{title}: reverse KL", kl, f"{math.log(count):.2f} if all samples are in one mode"),
        ]
    published = f"Lin et al. 2018: {PUBLISHED[name]}" if name in PUBLISHED else ""
    return [
        reported(f"{title}: modes", modes, published or f"of {count}"),
        reported(f"{title}: share of good samples", share),
        reported(f"{title}: reverse KL", kl, f"{math.log(count):.2f} if all samples are in one mode"),
    ]


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the samples of the first seed, the numbers of all seeds, and the training on the ring."""
    return [_clouds(findings[0]), _seeds(findings), _training(findings[0])]


def _clouds(first: Findings) -> Picture:
    plot_data = first.plot_data["clouds"]
    columns = len(next(iter(plot_data.values())))
    fig, axes = plots.figure(len(plot_data), columns, width=3.0, height=3.2)
    axes = np.atleast_2d(axes)
    for row, (shape, samples) in zip(axes, plot_data.items(), strict=True):
        for panel, (name, x) in zip(row, samples.items(), strict=True):
            panel.scatter(*TARGETS[shape].centres.T, s=60, facecolors="none", edgecolors=plots.DATA, linewidths=1.2)
            panel.scatter(*x.T.astype(float), s=3, color=plots.GENERATED, alpha=0.6, linewidths=0)
            plots.plane(panel, name)
            panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
    return Picture(
        "mode_collapse.png",
        "800 samples of each GAN (orange) and the centres of the modes (wide blue circles), first seed.",
        plots.png(fig),
    )


def _seeds(findings: Sequence[Findings]) -> Picture:
    table = {number.what: [run.numbers[k].measured for run in findings] for k, number in enumerate(findings[0].numbers)}
    plot_data = findings[0].plot_data["clouds"]
    fig, axes = plots.figure(2, len(plot_data), width=6.5, height=3.0)
    axes = axes.reshape(2, len(plot_data))
    for column, (shape, samples) in enumerate(plot_data.items()):
        for row, (what, best) in enumerate((("modes", len(TARGETS[shape].centres)), ("share of good samples", 1))):
            panel = axes[row, column]
            panel.axhline(best, color=plots.BLACK, linewidth=1, linestyle="--")
            for k, (name, color) in enumerate(zip(samples, plots.CYCLE, strict=False)):
                values = table[f"{shape}, {name}: {what}"]
                offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
                panel.scatter(k + np.asarray(offsets), values, s=28, color=color)
            panel.set(title=shape if row == 0 else "", ylabel=what, ylim=(0, 1.08 * best))
            panel.set_xticks(range(len(samples)), [name.replace(", ", ",\n") for name in samples])
    return Picture(
        "mode_collapse_seeds.png",
        "The results of each seed. Dashed: all modes, and only good samples.",
        plots.png(fig),
    )


def _training(first: Findings) -> Picture:
    recorded = first.plot_data["frames"]
    count = min(len(frames) for frames in recorded.values())

    def frame(k: int) -> Any:
        fig, axes = plots.figure(1, len(recorded), width=2.3, height=2.6)
        for panel, (name, frames) in zip(np.ravel(axes), recorded.items(), strict=True):
            panel.scatter(*TARGETS["ring"].centres.T, s=60, facecolors="none", edgecolors=plots.DATA, linewidths=1.2)
            panel.scatter(*frames[k].T.astype(float), s=3, color=plots.GENERATED, alpha=0.6, linewidths=0)
            plots.plane(panel, name)
            panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
        return fig

    return Picture(
        "mode_collapse.webp",
        "The training on the ring, from the first iteration to the last.",
        plots.animation(count, frame),
    )


EXPERIMENT = Experiment(
    title="Mode collapse: some GANs drop modes",
    claim="The GAN's generator may satisfy D with a few modes alone; the Wasserstein critic measures the distance to "
    "the others.",
    method="A ring of 8 and a grid of 25 narrow Gaussians (Lin et al. 2018, arXiv 1712.04086), learned by the "
    "lecture's GAN; PacGAN2 (the same paper), whose D classifies pairs; WGAN-GP; the relativistic loss with R1 and R2 "
    "of the convolutional GAN; and the same with that GAN's G, which selects among groups. All other G are continuous "
    "maps of two-dimensional noise, and therefore generate points between modes. Every D and the critic see the plane "
    "magnified six times.",
    measure=measure,
    draw=draw,
    seeds=10,
)
