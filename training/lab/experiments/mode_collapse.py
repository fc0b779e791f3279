"""Many narrow modes, and which games find all of them.

A mode is covered if at least one of 2,500 samples lies within three deviations of its centre, and a sample is good if
it lies that close to any. The reverse KL is that of the nearest centres, over the samples, from an even choice of K:

    KL(q, uniform) = sum_k q_k log(K q_k)                    0: all alike;  log K: all in one
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
    """Points [B, 2] two at a time: [B / 2, 4]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2)).flatten(1)


class PacGAN2(GAN):
    """The same, with a D that judges two points of one kind at a time and sees when they are too much alike."""

    def __init__(self, config: GANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), Pairs(), MLP(2 * math.prod(data_shape), 256, 128, 1))


class PlaneWGANGP(WGANGP):
    """The production family."""

    def __init__(self, config: WGANGPConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.critic = nn.Sequential(Magnified(), self.critic)


class PlaneDCGAN(DCGAN):
    """The production family, whose game is relativistic with both penalties, R1 and R2."""

    def __init__(self, config: DCGANConfig, data_shape: tuple[int, ...] = (2,), classes: int = 0) -> None:
        super().__init__(config, data_shape, classes)
        self.discriminator = nn.Sequential(Magnified(), self.discriminator)


@dataclass(frozen=True)
class Player:
    """A family and how it is trained."""

    kind: type[Family]
    config: Any
    iterations: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)

    def train(self, target: Gaussians, seed: int, share: float, watch: Callable[[Trainer], None] | None) -> Family:
        """The family after `share` of its iterations on 50,000 points of `target`."""
        dataset = fitting.points(target.draw(50_000, seed))
        batch = 128
        moves = self.kind(self.config, (2,), 0).update_order()
        epochs = fitting.iterations(int(share * self.iterations), batch, dataset, moves.count(moves[0]))
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
"""Modes of the ring's 8, by Lin et al. (2018, arXiv 1712.04086), with other nets and a longer training."""


def measure(setting: Setting) -> Findings:
    """Train each player on each target."""
    share = 0.25 if setting.quick else 1.0
    names = (BEST,) if setting.quick else tuple(PLAYERS)
    numbers: list[Number] = []
    clouds: dict[str, dict[str, Any]] = {}
    films: dict[str, list[Any]] = {}
    for where, target in list(TARGETS.items())[: 1 if setting.quick else 2]:
        for name in names:
            frames: list[Any] = []
            filmed = where == "ring" and name in WATCHED and setting.seed == 0
            family = PLAYERS[name].train(target, setting.seed, share, film(frames) if filmed else None)
            x = fitting.samples(family, SAMPLES)
            numbers += judged(f"{where}, {name}", target, x, setting.quick)
            clouds.setdefault(where, {})[name] = x[:800].half().numpy()
            if filmed:
                films[name] = frames
    return Findings(tuple(numbers), {"clouds": clouds, "films": films})


def film(frames: list[Any]) -> Callable[[Trainer], None]:
    """Keeps 400 draws at moments that lie closer together early on, when more happens."""

    def watch(trainer: Trainer) -> None:
        if trainer.images >= trainer.total_images * (len(frames) / (FRAMES - 1)) ** 2:
            frames.append(fitting.samples(trainer.average, 400).half().numpy())

    return watch


def judged(who: str, target: Gaussians, x: Tensor, quick: bool) -> list[Number]:
    """Modes, share of good samples and reverse KL of samples x [N, 2]."""
    count = len(target.centres)
    nearest, deviations = target.nearest(x)
    good = deviations <= 3
    modes = float(len(nearest[good].unique()))
    share = float(good.double().mean())
    q = torch.bincount(nearest, minlength=count).double() / len(x)
    kl = float(torch.special.xlogy(q, count * q).sum())
    name = who.removeprefix("ring, ")
    if who == f"ring, {BEST}":
        return [
            near(f"{who}: modes", modes, count, 0, "all of them, with every seed"),
            at_least(
                f"{who}: share of good samples", share, 0.8 if quick else 0.95, "what this project asks of its best"
            ),
            reported(f"{who}: reverse KL", kl, f"{math.log(count):.2f}: all in one"),
        ]
    found = f"Lin et al. 2018 found {PUBLISHED[name]}" if name in PUBLISHED else ""
    return [
        reported(f"{who}: modes", modes, found or f"of {count}"),
        reported(f"{who}: share of good samples", share),
        reported(f"{who}: reverse KL", kl, f"{math.log(count):.2f}: all in one"),
    ]


def draw(found: Sequence[Findings]) -> list[Picture]:
    """The draws of the first seed, what all seeds came to, and the ring being found."""
    return [clouds(found[0]), spread(found), race(found[0])]


def clouds(first: Findings) -> Picture:
    shown = first.shown["clouds"]
    columns = len(next(iter(shown.values())))
    fig, axes = plots.figure(len(shown), columns, width=3.0, height=3.2)
    axes = np.atleast_2d(axes)
    for row, (where, drawn) in zip(axes, shown.items(), strict=True):
        for panel, (name, x) in zip(row, drawn.items(), strict=True):
            panel.scatter(*TARGETS[where].centres.T, s=60, facecolors="none", edgecolors=plots.DATA, linewidths=1.2)
            panel.scatter(*x.T.astype(float), s=3, color=plots.GENERATED, alpha=0.6, linewidths=0)
            plots.plane(panel, name)
            panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
    return Picture(
        "mode_collapse.png",
        "800 samples of each (orange) and the centres of the modes (blue circles, wider than the modes), first seed.",
        plots.png(fig),
    )


def spread(found: Sequence[Findings]) -> Picture:
    table = {number.what: [f.numbers[k].measured for f in found] for k, number in enumerate(found[0].numbers)}
    shown = found[0].shown["clouds"]
    fig, axes = plots.figure(2, len(shown), width=6.5, height=3.0)
    axes = axes.reshape(2, len(shown))
    for column, (where, drawn) in enumerate(shown.items()):
        for row, (what, most) in enumerate((("modes", len(TARGETS[where].centres)), ("share of good samples", 1))):
            panel = axes[row, column]
            panel.axhline(most, color=plots.BLACK, linewidth=1, linestyle="--")
            for k, (name, color) in enumerate(zip(drawn, plots.CYCLE, strict=False)):
                values = table[f"{where}, {name}: {what}"]
                offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
                panel.scatter(k + np.asarray(offsets), values, s=28, color=color)
            panel.set(title=where if row == 0 else "", ylabel=what, ylim=(0, 1.08 * most))
            panel.set_xticks(range(len(drawn)), [name.replace(", ", ",\n") for name in drawn])
    return Picture(
        "mode_collapse_seeds.png",
        "What each seed came to; dashed: all modes, and none but good samples.",
        plots.png(fig),
    )


def race(first: Findings) -> Picture:
    films = first.shown["films"]
    frames = min(len(frames) for frames in films.values())

    def frame(k: int) -> Any:
        fig, axes = plots.figure(1, len(films), width=2.3, height=2.6)
        for panel, (name, frames) in zip(np.ravel(axes), films.items(), strict=True):
            panel.scatter(*TARGETS["ring"].centres.T, s=60, facecolors="none", edgecolors=plots.DATA, linewidths=1.2)
            panel.scatter(*frames[k].T.astype(float), s=3, color=plots.GENERATED, alpha=0.6, linewidths=0)
            plots.plane(panel, name)
            panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
        return fig

    return Picture(
        "mode_collapse.webp",
        "The ring being found, from the first iteration to the last.",
        plots.animation(frames, frame),
    )


EXPERIMENT = Experiment(
    title="Some games drop modes",
    claim="The GAN's generator may please D by a few modes alone. Wasserstein's critic tells how far the rest is.",
    method="A ring of 8 and a grid of 25 narrow Gaussians (Lin et al. 2018, arXiv 1712.04086), played for by the "
    "lecture's GAN; PacGAN2 (the same paper), whose D judges pairs; WGAN-GP; the relativistic game with R1 and R2 that "
    "the convolutional GAN plays; and that with the G it is played with there, which chooses among groups. All other G "
    "are continuous maps of two numbers of noise, and cannot but draw between modes. All opponents see the plane "
    "magnified six times.",
    measure=measure,
    draw=draw,
    seeds=10,
)
