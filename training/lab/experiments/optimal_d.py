"""What the minimax game costs its generator once D is as good as can be: the Jensen-Shannon divergence.

V(D, G) = E_p log D(x) + E_q log(1 - D(x))                          q: what G draws
D*(x)   = p(x) / (p(x) + q(x))                                      (Goodfellow et al. 2014, Proposition 1)
C(G)    = max_D V(D, G) = 2 JS(p, q) - 2 log 2                      (the same, Theorem 1)
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import Recipe
from models.families.gan import GANConfig
from training.lab import plots
from training.lab.distances import jensen_shannon, lattice
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_most, near
from training.lab.fitting import fit, iterations, points
from training.lab.fixed_generator import FixedGeneratorGAN
from training.lab.shapes import Gaussians, ring

POINTS = 50_000
FRESH = 200_000
"""Points on which V is taken: its own error is about 0.002."""
BATCH = 256
REACH, BINS = 2.0, 400
SHOWN_BINS = 80


def gaussian(x: float, deviation: float) -> Gaussians:
    """One round Gaussian at (x, 0)."""
    return Gaussians(torch.tensor([[x, 0.0]]), deviation)


PAIRS = {
    "the same": (gaussian(0, 0.25), gaussian(0, 0.25)),
    "a little apart": (gaussian(-0.1, 0.25), gaussian(0.1, 0.25)),
    "wide and narrow": (gaussian(0, 0.35), gaussian(0, 0.15)),
    "a ring and a blob": (ring(5, 0.6, 0.13), gaussian(0, 0.35)),
    "apart": (gaussian(-0.3, 0.2), gaussian(0.3, 0.2)),
    "far apart": (gaussian(-0.6, 0.15), gaussian(0.6, 0.15)),
}
"""p and q, q always one Gaussian: the G that draws it is a shift and a scale."""
QUICK = ("the same", "wide and narrow", "apart")


def optimum(p: Gaussians, q: Gaussians, x: Tensor) -> Tensor:
    """D*(x) for x [N, 2]: [N]."""
    return (p.log_density(x) - q.log_density(x)).sigmoid()


def divergence(p: Gaussians, q: Gaussians) -> float:
    """JS(p, q) in nats, by the midpoint rule on a fine lattice."""
    x = lattice(BINS, REACH)
    return jensen_shannon(p.log_density(x).exp(), q.log_density(x).exp())


def best_opponent(p: Gaussians, q: Gaussians, steps: int, seed: int) -> FixedGeneratorGAN:
    """The family's D after so many steps against G = q."""
    dataset = points(p.draw(POINTS, seed))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, 2e-3, (0.5, 0.999), ema=20 * BATCH, cosine=True)
    kind = partial(FixedGeneratorGAN, given=lambda z: q.centres + q.deviation * z)
    family = fit(kind, GANConfig(latent=2), dataset, recipe, seed)
    assert isinstance(family, FixedGeneratorGAN)
    return family


@torch.inference_mode()
def value(family: FixedGeneratorGAN, p: Gaussians, q: Gaussians, seed: int) -> float:
    """V of the family's D on points it has not seen."""
    real, generated = (family.discriminator(side.draw(FRESH, seed + k)) for k, side in ((1000, p), (2000, q)))
    return float(F.logsigmoid(real).double().mean() + F.logsigmoid(-generated).double().mean())


def measure(setting: Setting) -> Findings:
    """Train D to its optimum on each pair."""
    numbers: list[Number] = []
    shown: dict[str, Any] = {}
    x = lattice(SHOWN_BINS)
    for name in QUICK if setting.quick else PAIRS:
        p, q = PAIRS[name]
        family = best_opponent(p, q, 700 if setting.quick else 2500, setting.seed)
        js, v = divergence(p, q), value(family, p, q, setting.seed)
        numbers.append(
            near(f"{name}: V with D trained to its optimum", v, 2 * js - 2 * math.log(2), 0.02, "2 JS(p, q) - 2 log 2")
        )
        with torch.inference_mode():
            learned, best = family.discriminator(x)[:, 0].sigmoid(), optimum(p, q, x)
        weight = p.log_density(x).exp() + q.log_density(x).exp()
        off = float((weight * (learned - best).abs()).sum() / weight.sum())
        numbers.append(at_most(f"{name}: mean |D - D*| over both", off, 0.05, "D* = p / (p + q)"))
        shown[name] = {"js": js, "v": v, "learned": learned, "best": best}
    return Findings(tuple(numbers), shown)


def draw(found: Sequence[Findings]) -> list[Picture]:
    """The value against the divergence, and D beside D*."""
    return [_line(found), _maps(found[0])]


def _line(found: Sequence[Findings]) -> Picture:
    fig, axis = plots.figure(width=7.0, height=4.8)
    ends = (0.0, math.log(2))
    axis.plot(ends, [2 * js - 2 * math.log(2) for js in ends], color=plots.BLACK, linewidth=1.5,
              label="2 JS − 2 log 2")  # fmt: skip
    for k, name in enumerate(found[0].shown):
        each = [one.shown[name] for one in found]
        axis.scatter([one["js"] for one in each], [one["v"] for one in each], s=70, zorder=3, label=name,
                     color=plots.CYCLE[k])  # fmt: skip
    axis.axvline(math.log(2), color=plots.BLACK, linewidth=1, linestyle=":")
    axis.annotate("log 2", (math.log(2), -1.35), (-6, 0), textcoords="offset points", ha="right")
    axis.set(xlabel="JS(p, q), nats", ylabel="V with the best D", title="The value that D can reach")
    axis.legend(loc="upper left")
    return Picture(
        "optimal_d.png",
        "What the value comes to on fresh points once D has been trained against a G that stands still, and Theorem 1.",
        plots.png(fig),
    )


def _maps(first: Findings) -> Picture:
    names = [name for name in first.shown if name not in ("the same", "a little apart", "far apart")]
    fig, axes = plots.figure(2, len(names), width=3.9, height=3.7)
    for column, name in enumerate(names):
        p, q = PAIRS[name]
        for row, (what, key) in enumerate((("D, learned", "learned"), ("D* = p / (p + q)", "best"))):
            panel = axes.reshape(2, len(names))[row, column]
            surface = first.shown[name][key].reshape(SHOWN_BINS, SHOWN_BINS).T.numpy()
            marks = panel.imshow(surface, origin="lower", extent=(-1, 1, -1, 1), vmin=0, vmax=1, cmap="cividis")
            contours(panel, p, plots.SKY)
            contours(panel, q, plots.GENERATED)
            plots.plane(panel, f"{name}\n{what}" if row == 0 else what)
            panel.grid(False)
    fig.colorbar(marks, ax=fig.axes, label="D(x)", shrink=0.6)
    return Picture(
        "optimal_d_maps.png",
        "D as learned, and as Proposition 1 has it. Lines: half of the greatest density, of the data (blue) and of "
        "what G draws (orange). Where neither draws any point, nothing teaches D.",
        plots.png(fig),
    )


def contours(panel: Any, shape: Gaussians, color: str) -> None:
    """The line on which `shape` has half of its greatest density."""
    x = lattice(SHOWN_BINS)
    density = shape.log_density(x).exp().reshape(SHOWN_BINS, SHOWN_BINS).T
    line = x[:SHOWN_BINS, 1]
    panel.contour(line, line, density, levels=[float(density.max()) / 2], colors=[color], linewidths=1.8)


EXPERIMENT = Experiment(
    title="The best D measures the Jensen-Shannon divergence",
    claim="With D at its optimum p / (p + q), the generator's cost is C(G) = 2 JS(p, q) - 2 log 2.",
    method="The lecture's D (the family gan, by the production loop) against generators that stand still and draw known "
    "Gaussians, so that both densities are known; V is taken on 200,000 fresh points of each, JS by quadrature.",
    measure=measure,
    draw=draw,
)
