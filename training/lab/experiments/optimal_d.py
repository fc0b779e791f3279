"""The generator's cost in the minimax game with the optimal D: the Jensen-Shannon divergence.

V(D, G) = E_p log D(x) + E_q log(1 - D(x))                          q: the distribution of G's samples
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
"""Points for the estimate of V, whose standard error is then about 0.002."""
BATCH = 256
REACH, BINS = 2.0, 400
SHOWN_BINS = 80


def gaussian(x: float, deviation: float) -> Gaussians:
    """One isotropic Gaussian at (x, 0)."""
    return Gaussians(torch.tensor([[x, 0.0]]), deviation)


PAIRS = {
    "the same": (gaussian(0, 0.25), gaussian(0, 0.25)),
    "a little apart": (gaussian(-0.1, 0.25), gaussian(0.1, 0.25)),
    "wide and narrow": (gaussian(0, 0.35), gaussian(0, 0.15)),
    "a ring and a blob": (ring(5, 0.6, 0.13), gaussian(0, 0.35)),
    "apart": (gaussian(-0.3, 0.2), gaussian(0.3, 0.2)),
    "far apart": (gaussian(-0.6, 0.15), gaussian(0.6, 0.15)),
}
"""p and q. q is always one Gaussian, which a G of a shift and a scale generates."""
QUICK = ("the same", "wide and narrow", "apart")


def optimum(p: Gaussians, q: Gaussians, x: Tensor) -> Tensor:
    """D*(x) for x [N, 2]: [N]."""
    return (p.log_density(x) - q.log_density(x)).sigmoid()


def divergence(p: Gaussians, q: Gaussians) -> float:
    """JS(p, q) in nats, by the midpoint rule on a fine lattice."""
    x = lattice(BINS, REACH)
    return jensen_shannon(p.log_density(x).exp(), q.log_density(x).exp())


def trained_discriminator(p: Gaussians, q: Gaussians, steps: int, seed: int) -> FixedGeneratorGAN:
    """The family with its D trained for `steps` steps against the fixed G of q."""
    dataset = points(p.sample(POINTS, seed))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, 2e-3, (0.5, 0.999), ema=20 * BATCH, cosine=True)
    kind = partial(FixedGeneratorGAN, fixed_generator=lambda z: q.centres + q.deviation * z)
    family = fit(kind, GANConfig(latent=2), dataset, recipe, seed)
    assert isinstance(family, FixedGeneratorGAN)
    return family


@torch.inference_mode()
def value(family: FixedGeneratorGAN, p: Gaussians, q: Gaussians, seed: int) -> float:
    """V of the family's D on unseen points."""
    real, generated = (family.discriminator(side.sample(FRESH, seed + k)) for k, side in ((1000, p), (2000, q)))
    return float(F.logsigmoid(real).double().mean() + F.logsigmoid(-generated).double().mean())


def measure(setting: Setting) -> Findings:
    """Train D to its optimum on each pair, and compare V and D with theory."""
    numbers: list[Number] = []
    plot_data: dict[str, Any] = {}
    x = lattice(SHOWN_BINS)
    for name in QUICK if setting.quick else PAIRS:
        p, q = PAIRS[name]
        family = trained_discriminator(p, q, 700 if setting.quick else 2500, setting.seed)
        js, v = divergence(p, q), value(family, p, q, setting.seed)
        numbers.append(
            near(f"{name}: V with D trained to its optimum", v, 2 * js - 2 * math.log(2), 0.02, "2 JS(p, q) - 2 log 2")
        )
        with torch.inference_mode():
            learned, best = family.discriminator(x)[:, 0].sigmoid(), optimum(p, q, x)
        weight = p.log_density(x).exp() + q.log_density(x).exp()
        error = float((weight * (learned - best).abs()).sum() / weight.sum())
        numbers.append(at_most(f"{name}: mean |D - D*| over p and q", error, 0.05, "D* = p / (p + q)"))
        plot_data[name] = {"js": js, "v": v, "learned": learned, "best": best}
    return Findings(tuple(numbers), plot_data)


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the value by the divergence, and D beside D*."""
    return [_line(findings), _maps(findings[0])]


def _line(findings: Sequence[Findings]) -> Picture:
    fig, axis = plots.figure(width=7.0, height=4.8)
    ends = (0.0, math.log(2))
    axis.plot(ends, [2 * js - 2 * math.log(2) for js in ends], color=plots.BLACK, linewidth=1.5,
              label="2 JS − 2 log 2")  # fmt: skip
    for k, name in enumerate(findings[0].plot_data):
        pairs = [run.plot_data[name] for run in findings]
        axis.scatter([pair["js"] for pair in pairs], [pair["v"] for pair in pairs], s=70, zorder=3, label=name,
                     color=plots.CYCLE[k])  # fmt: skip
    axis.axvline(math.log(2), color=plots.BLACK, linewidth=1, linestyle=":")
    axis.annotate("log 2", (math.log(2), -1.35), (-6, 0), textcoords="offset points", ha="right")
    axis.set(xlabel="JS(p, q), nats", ylabel="V with the best D", title="The maximal value over D")
    axis.legend(loc="upper left")
    return Picture(
        "optimal_d.png",
        "The value on fresh points after D was trained against a fixed G, and the value of Theorem 1.",
        plots.png(fig),
    )


def _maps(first: Findings) -> Picture:
    names = [name for name in first.plot_data if name not in ("the same", "a little apart", "far apart")]
    fig, axes = plots.figure(2, len(names), width=3.9, height=3.7)
    for column, name in enumerate(names):
        p, q = PAIRS[name]
        for row, (what, key) in enumerate((("D, learned", "learned"), ("D* = p / (p + q)", "best"))):
            panel = axes.reshape(2, len(names))[row, column]
            surface = first.plot_data[name][key].reshape(SHOWN_BINS, SHOWN_BINS).T.numpy()
            marks = panel.imshow(surface, origin="lower", extent=(-1, 1, -1, 1), vmin=0, vmax=1, cmap="cividis")
            contours(panel, p, plots.SKY)
            contours(panel, q, plots.GENERATED)
            plots.plane(panel, f"{name}\n{what}" if row == 0 else what)
            panel.grid(False)
    fig.colorbar(marks, ax=fig.axes, label="D(x)", shrink=0.6)
    return Picture(
        "optimal_d_maps.png",
        "The learned D (top) and the D of Proposition 1 (bottom). Lines: half of the maximal density of the data "
        "(blue) and of G (orange). Regions without points of either do not train D.",
        plots.png(fig),
    )


def contours(panel: Any, shape: Gaussians, color: str) -> None:
    """Draw the contour at half of the maximal density of `shape`."""
    x = lattice(SHOWN_BINS)
    density = shape.log_density(x).exp().reshape(SHOWN_BINS, SHOWN_BINS).T
    line = x[:SHOWN_BINS, 1]
    panel.contour(line, line, density, levels=[float(density.max()) / 2], colors=[color], linewidths=1.8)


EXPERIMENT = Experiment(
    title="The optimal D measures the Jensen-Shannon divergence",
    claim="With D at its optimum p / (p + q), the generator's cost is C(G) = 2 JS(p, q) - 2 log 2.",
    method="The lecture's D (the family gan, by the production loop) against fixed generators of Gaussians, so that "
    "both densities are known; V on 200,000 fresh points of each, JS by quadrature.",
    measure=measure,
    draw=draw,
)
