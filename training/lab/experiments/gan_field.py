"""The course of a GAN's training in the plane: the learned D, the optimal D, and the gradient of every sample.

    D*(x) = p(x) / (p(x) + q(x))                                        (Goodfellow et al. 2014, Proposition 1)
    V(D, G) <= 2 JS(p, q) - 2 log 2,  and V = -2 log 2 where p = q      (the same, Theorem 1)

p is known; q is a histogram of G's samples, taken at many moments of the training. G maximises E log D(G(z)), so a
sample at x moves along grad log D(x).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import Recipe
from models.families.gan import GAN, GANConfig
from training.lab import plots
from training.lab.distances import histogram, jensen_shannon, lattice
from training.lab.experiment import Experiment, Findings, Picture, Setting, at_most, near, reported
from training.lab.fitting import iterations, make_trainer, points
from training.lab.plane import PlaneGAN
from training.lab.shapes import ring
from training.loop import Trainer

TARGET = ring(6, 0.55, 0.12)
POINTS = 50_000
BATCH = 128
SAMPLES = 40_000
"""Samples of G in a histogram."""
BINS, REACH = 40, 1.0
ARROWS = 90
CLOUD = 400
MOMENTS = 31
EARLY = 5
"""The index of the moment that is shown beside the last."""
ITERATIONS, QUICK_ITERATIONS = 3000, 400
REPLIES = 5
"""Steps of D before each step of G; with fewer D is far from its optimum."""


class Field:
    """Records of the training at MOMENTS moments, denser at the start."""

    def __init__(self) -> None:
        self.x = lattice(BINS, REACH)
        density = TARGET.log_density(self.x).exp()
        self.p = density / density.sum()
        self.moments: list[dict[str, Any]] = []

    def watch(self, trainer: Trainer) -> None:
        """Call before the first iteration and after each; records at the chosen moments."""
        if trainer.images >= trainer.total_images * (len(self.moments) / (MOMENTS - 1)) ** 2:
            assert isinstance(trainer.family, GAN)
            # The training's own random state does not change.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(len(self.moments))
                self.moments.append(self.record(trainer.family) | {"iterations": trainer.images // (REPLIES * BATCH)})

    def record(self, family: GAN) -> dict[str, Any]:
        """D and G now, and the optimal D and JS of their distributions."""
        with torch.no_grad():
            samples = family.generate(torch.randn(SAMPLES, family.config.latent))
            q = histogram(samples, BINS, REACH).flatten() / SAMPLES
            logits = family.discriminator(self.x)[:, 0]
            real, generated = (family.discriminator(side)[:, 0] for side in (TARGET.sample(SAMPLES, 1), samples))
        both = self.p + q
        best = torch.where(both > 1e-5, self.p / both, torch.nan)
        arrows = gradient_field(family, samples[:ARROWS])
        return {
            "D": logits.sigmoid().half(), "D*": best.half(), "generated": samples[:CLOUD].half(),
            "arrows": arrows.half(), "js": jensen_shannon(self.p, q),
            "v": float(F.logsigmoid(real).mean() + F.logsigmoid(-generated).mean()),
            "D(x)": float(real.sigmoid().mean()), "D(G(z))": float(generated.sigmoid().mean()),
            "off": float((both * (logits.sigmoid() - best.nan_to_num(0.5)).abs()).sum() / 2),
        }  # fmt: skip


def gradient_field(family: GAN, x: Tensor) -> Tensor:
    """grad log D at x [N, 2], the direction in which D finds each sample more real: [N, 2]."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.logsigmoid(family.discriminator(x)).sum(), x)
    return gradient


def measure(setting: Setting) -> Findings:
    """Train, record, and compare the records with theory."""
    dataset = points(TARGET.sample(POINTS, setting.seed))
    steps = QUICK_ITERATIONS if setting.quick else ITERATIONS
    recipe = Recipe(iterations(steps, BATCH, dataset, REPLIES), BATCH, 1e-3, (0.5, 0.999), cosine=True)
    field = Field()
    trainer = make_trainer(PlaneGAN, GANConfig(latent=8, discriminator_steps=REPLIES), dataset, recipe, setting.seed)
    field.watch(trainer)
    while trainer.images < trainer.total_images:
        trainer.train_step()
        field.watch(trainer)
    first, last = field.moments[0], field.moments[-1]
    excess = max(moment["v"] - (2 * moment["js"] - 2 * math.log(2)) for moment in field.moments)
    numbers = (
        at_most("maximum over time of V - (2 JS - 2 log 2)", excess, 0.05,
                "0, since no D exceeds D*; JS from histograms is slightly too small"),
        reported("JS(p, q) before the first step", first["js"], "log 2 = 0.69 without overlap"),
        at_most("JS(p, q) after the last step", last["js"], 0.5 * first["js"], "G approaches the data: at most half"),
        near("V after the last step", last["v"], -2 * math.log(2), 0.25, "-2 log 2 at the equilibrium, where p = q"),
        near("mean D(x) after the last step", last["D(x)"], 0.5, 0.1, "1/2 at the equilibrium"),
        near("mean D(G(z)) after the last step", last["D(G(z))"], 0.5, 0.1, "1/2 at the equilibrium"),
        reported("mean |D - D*| after the last step, over p and q", last["off"], "0 for the optimal D"),
    )  # fmt: skip
    return Findings(numbers, {"moments": field.moments})


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw an early and the last moment, the course of the game, and an animation of all moments."""
    moments = findings[0].plot_data["moments"]
    return [
        Picture(
            "gan_field.png",
            "Soon after the first step (top) and after the last (bottom): the learned D; p / (p + q) with q from a "
            "histogram (white: hardly any points); the samples of G (orange) with arrows along grad log D, and data "
            "(blue).",
            plots.png(_field([moments[EARLY], moments[-1]], width=4.2)),
        ),
        _course(findings),
        Picture(
            "gan_field.webp",
            "The game from its first step to its last.",
            plots.animation(len(moments), lambda k: _field(moments[k : k + 1], width=3.0), milliseconds=200),
        ),
    ]


def _field(moments: Sequence[Any], width: float) -> Any:
    """A row of three panels for each moment."""
    fig, axes = plots.figure(len(moments), 3, width=width, height=width + 0.1)
    square = (-REACH, REACH, -REACH, REACH)
    for moment, (*surfaces, cloud) in zip(moments, axes, strict=True):
        for panel, (key, title) in zip(surfaces, (("D", "D, learned"), ("D*", "p / (p + q)")), strict=True):
            surface = moment[key].float().reshape(BINS, BINS).T.numpy()
            panel.imshow(surface, origin="lower", extent=square, vmin=0, vmax=1, cmap="cividis")
            plots.plane(panel, title, REACH)
            panel.grid(False)
        generated, arrows = moment["generated"].float(), moment["arrows"].float()
        cloud.scatter(*TARGET.sample(CLOUD, 2).T, s=4, color=plots.DATA, alpha=0.5, linewidths=0)
        cloud.scatter(*generated.T, s=4, color=plots.GENERATED, alpha=0.8, linewidths=0)
        scaled = 0.3 * arrows / arrows.norm(dim=1, keepdim=True).clamp(min=4)  # none longer than 0.3
        cloud.quiver(*generated[:ARROWS].T, *scaled.T, angles="xy", scale_units="xy", scale=1, width=0.006)
        plots.plane(cloud, f"step {moment['iterations']:,}", REACH)
    for panel in axes.flat:
        panel.set(xlabel="", ylabel="", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return fig


def _course(findings: Sequence[Findings]) -> Picture:
    fig, axes = plots.figure(1, 2, width=6.0, height=4.2)
    moments = findings[0].plot_data["moments"]
    steps = [moment["iterations"] for moment in moments]
    left, right = axes[0]
    left.plot(steps, [2 * moment["js"] - 2 * math.log(2) for moment in moments], color=plots.BLACK,
              label="2 JS − 2 log 2")  # fmt: skip
    left.plot(steps, [moment["v"] for moment in moments], "o-", color=plots.BLUE, label="V of the learned D")
    left.axhline(-2 * math.log(2), color=plots.BLACK, linewidth=1, linestyle="--", label="−2 log 2: equilibrium")
    left.set(title="Value of the game", xlabel="steps", ylabel="nats")
    left.legend()
    for key, color in (("D(x)", plots.DATA), ("D(G(z))", plots.GENERATED)):
        right.plot(steps, [moment[key] for moment in moments], "o-", color=color, label=f"mean {key}")
    right.axhline(0.5, color=plots.BLACK, linewidth=1, linestyle="--")
    right.set(title="D's confidence", xlabel="steps", ylabel="probability of being real", ylim=(0, 1))
    right.legend()
    return Picture(
        "gan_field_course.png",
        "The value of the game below its bound, and the mean output of D for real and for generated points.",
        plots.png(fig),
    )


EXPERIMENT = Experiment(
    title="What D learns, and how its gradient moves G",
    claim="D estimates the probability that a point is real; the generator moves its points to where D is higher.",
    method="The lecture's GAN (the family gan, by the production loop, with five steps of D before each step of G; D "
    "sees the plane magnified six times) on a ring of 6 Gaussians: D compared with p / (p + q), the gradient of each "
    "sample, and JS from histograms, at 31 moments of the training.",
    measure=measure,
    draw=draw,
)
