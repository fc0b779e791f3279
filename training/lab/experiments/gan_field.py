"""A game being played, seen from the plane: what D believes, what it should, and where it sends the draws.

    D*(x) = p(x) / (p(x) + q(x))                                        (Goodfellow et al. 2014, Proposition 1)
    V(D, G) <= 2 JS(p, q) - 2 log 2,  and V = -2 log 2 where p = q      (the same, Theorem 1)

p is known; q is counted in a histogram of G's draws, at many moments of the training. G maximises E log D(G(z)), so a
draw at x is sent along grad log D(x).
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
from training.lab.fitting import begin, iterations, points
from training.lab.plane import PlaneGAN
from training.lab.shapes import ring
from training.loop import Trainer

TARGET = ring(6, 0.55, 0.12)
POINTS = 50_000
BATCH = 128
DRAWS = 40_000
"""Of G, for a histogram."""
BINS, REACH = 40, 1.0
ARROWS = 90
CLOUD = 400
MOMENTS = 31
EARLY = 5
"""The moment that is shown beside the last."""
ITERATIONS, QUICK_ITERATIONS = 3000, 400
REPLIES = 5
"""Steps of D before each of G's: with fewer it is far behind its optimum."""


class Field:
    """What is kept of a game at MOMENTS moments, closer together early on."""

    def __init__(self) -> None:
        self.x = lattice(BINS, REACH)
        density = TARGET.log_density(self.x).exp()
        self.p = density / density.sum()
        self.moments: list[dict[str, Any]] = []

    def watch(self, trainer: Trainer) -> None:
        """To be called before the first iteration and after each."""
        if trainer.images >= trainer.total_images * (len(self.moments) / (MOMENTS - 1)) ** 2:
            assert isinstance(trainer.family, GAN)
            # The game's own randomness stays as if nobody looked.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(len(self.moments))
                self.moments.append(self.look(trainer.family) | {"iterations": trainer.images // (REPLIES * BATCH)})

    def look(self, family: GAN) -> dict[str, Any]:
        """D and G as they are, and what theory makes of them."""
        with torch.no_grad():
            drawn = family.generate(torch.randn(DRAWS, family.config.latent))
            q = histogram(drawn, BINS, REACH).flatten() / DRAWS
            logits = family.discriminator(self.x)[:, 0]
            real, generated = (family.discriminator(side)[:, 0] for side in (TARGET.draw(DRAWS, 1), drawn))
        both = self.p + q
        best = torch.where(both > 1e-5, self.p / both, torch.nan)
        arrows = steepest(family, drawn[:ARROWS])
        return {
            "D": logits.sigmoid().half(), "D*": best.half(), "drawn": drawn[:CLOUD].half(),
            "arrows": arrows.half(), "js": jensen_shannon(self.p, q),
            "v": float(F.logsigmoid(real).mean() + F.logsigmoid(-generated).mean()),
            "D(x)": float(real.sigmoid().mean()), "D(G(z))": float(generated.sigmoid().mean()),
            "off": float((both * (logits.sigmoid() - best.nan_to_num(0.5)).abs()).sum() / 2),
        }  # fmt: skip


def steepest(family: GAN, x: Tensor) -> Tensor:
    """grad log D at x [N, 2], the way on which each draw pleases D more: [N, 2]."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.logsigmoid(family.discriminator(x)).sum(), x)
    return gradient


def measure(setting: Setting) -> Findings:
    """Play, look on, and hold what was seen against theory."""
    dataset = points(TARGET.draw(POINTS, setting.seed))
    steps = QUICK_ITERATIONS if setting.quick else ITERATIONS
    recipe = Recipe(iterations(steps, BATCH, dataset, REPLIES), BATCH, 1e-3, (0.5, 0.999), cosine=True)
    field = Field()
    trainer = begin(PlaneGAN, GANConfig(latent=8, discriminator_steps=REPLIES), dataset, recipe, setting.seed)
    field.watch(trainer)
    while trainer.images < trainer.total_images:
        trainer.train_step()
        field.watch(trainer)
    first, last = field.moments[0], field.moments[-1]
    over = max(moment["v"] - (2 * moment["js"] - 2 * math.log(2)) for moment in field.moments)
    numbers = (
        at_most("V over 2 JS - 2 log 2, the greatest of all moments", over, 0.05,
                "0: no D does better than D*; a histogram's JS is a little small"),
        reported("JS(p, q) before the first step", first["js"], "log 2 = 0.69: nothing in common"),
        at_most("JS(p, q) after the last", last["js"], 0.5 * first["js"], "G comes nearer: half at most"),
        near("V after the last", last["v"], -2 * math.log(2), 0.25, "-2 log 2 at the equilibrium, where p = q"),
        near("mean D(x) after the last", last["D(x)"], 0.5, 0.1, "1/2 at the equilibrium"),
        near("mean D(G(z)) after the last", last["D(G(z))"], 0.5, 0.1, "1/2 at the equilibrium"),
        reported("mean |D - D*| after the last, over both", last["off"], "0 for a D that has learned all of p and q"),
    )  # fmt: skip
    return Findings(numbers, {"moments": field.moments})


def draw(found: Sequence[Findings]) -> list[Picture]:
    """The last moment, the course of the game, and all moments one after another."""
    moments = found[0].shown["moments"]
    return [
        Picture(
            "gan_field.png",
            "A while after the first step, and after the last: D as learned, p / (p + q) with q counted (white: hardly "
            "any point of either), and where D sends G's draws (orange; arrows along grad log D; blue: data).",
            plots.png(_field([moments[EARLY], moments[-1]], width=4.2)),
        ),
        _course(found),
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
        drawn, arrows = moment["drawn"].float(), moment["arrows"].float()
        cloud.scatter(*TARGET.draw(CLOUD, 2).T, s=4, color=plots.DATA, alpha=0.5, linewidths=0)
        cloud.scatter(*drawn.T, s=4, color=plots.GENERATED, alpha=0.8, linewidths=0)
        shown = 0.3 * arrows / arrows.norm(dim=1, keepdim=True).clamp(min=4)  # none longer than 0.3
        cloud.quiver(*drawn[:ARROWS].T, *shown.T, angles="xy", scale_units="xy", scale=1, width=0.006)
        plots.plane(cloud, f"step {moment['iterations']:,}", REACH)
    for panel in axes.flat:
        panel.set(xlabel="", ylabel="", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return fig


def _course(found: Sequence[Findings]) -> Picture:
    fig, axes = plots.figure(1, 2, width=6.0, height=4.2)
    moments = found[0].shown["moments"]
    at = [moment["iterations"] for moment in moments]
    left, right = axes[0]
    left.plot(at, [2 * moment["js"] - 2 * math.log(2) for moment in moments], color=plots.BLACK,
              label="2 JS − 2 log 2")  # fmt: skip
    left.plot(at, [moment["v"] for moment in moments], "o-", color=plots.BLUE, label="V of D as learned")
    left.axhline(-2 * math.log(2), color=plots.BLACK, linewidth=1, linestyle="--", label="−2 log 2: equilibrium")
    left.set(title="What the game is worth", xlabel="steps", ylabel="nats")
    left.legend()
    for key, color in (("D(x)", plots.DATA), ("D(G(z))", plots.GENERATED)):
        right.plot(at, [moment[key] for moment in moments], "o-", color=color, label=f"mean {key}")
    right.axhline(0.5, color=plots.BLACK, linewidth=1, linestyle="--")
    right.set(title="D's confidence", xlabel="steps", ylabel="probability of being real", ylim=(0, 1))
    right.legend()
    return Picture(
        "gan_field_course.png",
        "The value of the game under its bound, and how sure D is of real and of generated points.",
        plots.png(fig),
    )


EXPERIMENT = Experiment(
    title="What D believes, and where it sends G",
    claim="D says how likely a point is to be real; the generator moves its points to where D believes more.",
    method="The lecture's GAN (the family gan, by the production loop, five steps of D before each of G's; D sees the "
    "plane magnified six times) on a ring of 6 Gaussians: D beside p / (p + q), "
    "the gradient that each draw gets, and JS from histograms, at 31 moments of the training.",
    measure=measure,
    draw=draw,
)
