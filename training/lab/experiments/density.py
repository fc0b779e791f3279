"""The loss of a density estimated from samples, for a model of the right form, a too rigid one and a too flexible one.

    E_p[log p(x) - log q(x)] = KL(p, q) >= 0                the loss of an estimate q of p on held-out points

A Gaussian has few parameters and loses 1/(2N) nats for each. A kernel density assumes no form and fits any p, but its
loss grows with the dimension.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import digamma
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from models import mixture
from models.base import CLOSED_FORM
from models.families.gmm import GMM, GMMConfig
from models.families.kde import KDE, KDEConfig
from models.mixture import Mixture
from training.lab import distances, plots, shapes
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_least, at_most, near, reported
from training.lab.fitting import fit, points

COUNTS = (20, 100, 300, 1000)
"""Numbers of points that a Gaussian is estimated from."""
SHOWN = 100
"""The number of points in the picture of the Gaussian."""
CORRELATION = 0.7
"""Correlation of the Gaussian's coordinates in the plane; the loss of an estimate does not depend on it."""
PLANE = shapes.ring(4, radius=0.5, deviation=0.12)
"""The true density whose bandwidth and number of components the estimates must find."""
PLANE_COUNT = 400
BANDWIDTHS = torch.logspace(-2, 0, 21) / 2
COMPONENTS = (1, 2, 4, 8, 16)
DIMENSIONS = (1, 2, 4, 8, 16, 32)
CROWD = 1000
"""The number of points for the estimates in DIMENSIONS."""
HELD_OUT = 2000
BINS, REACH = 100, 1.0
"""The lattice on which densities are plotted."""


def gaussian(size: int, correlation: float = 0.0) -> MultivariateNormal:
    """The true Gaussian in `size` dimensions: deviation 0.3, equal correlation of all pairs of coordinates."""
    covariance = correlation + (1 - correlation) * torch.eye(size, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(size, dtype=torch.float64), 0.3**2 * covariance)


def sample_from(truth: MultivariateNormal, count: int, seed: int) -> Tensor:
    """Samples [count, D] float32 of `truth`."""
    eps = torch.randn(count, len(truth.loc), generator=Generator().manual_seed(seed), dtype=torch.float64)
    return (truth.loc + eps @ truth.scale_tril.T).float()


def likeliest_gaussian(x: Tensor) -> MultivariateNormal:
    """The maximum-likelihood Gaussian of x [N, D]: the family's mixture of one component."""
    single = components(x, most=1)
    return MultivariateNormal(single.means[0].double(), scale_tril=single.cholesky[0].double())


def kernels(x: Tensor) -> KDE:
    """The family's kernel density of x [N, D]: four fifths become kernels, the rest select the bandwidth."""
    family = fit(KDE, KDEConfig(code=0), points(x), CLOSED_FORM, seed=0)
    assert isinstance(family, KDE)
    return family


def components(x: Tensor, most: int) -> Mixture:
    """The family's mixture for x [N, D], with up to `most` components, selected by BIC."""
    family = fit(GMM, GMMConfig(code=0, most=most, pooled=0), points(x), CLOSED_FORM, seed=0)
    assert isinstance(family, GMM)
    return family.mixture


def em(x: Tensor, components: int) -> mixture.MixtureFit:
    """The likeliest mixture for x [N, D] of eight starts of EM; a single start may miss a cluster."""
    return max((mixture.fit(x, components, seed=k) for k in range(8)), key=lambda result: result.objectives[-1])


def parameters(size: int) -> int:
    """The number of free parameters of a Gaussian in `size` dimensions: mean and covariance."""
    return size * (size + 3) // 2


def expected_loss(count: int, size: int) -> float:
    """E KL(truth, likeliest Gaussian of `count` points), exactly; about (d(d+3)/2) / (2N) for many points.

    From the Wishart distribution of N times the estimated covariance: E S^-1 = N/(N-d-2) I, and
    E log det S = sum_i digamma((N-i)/2) + d log(2/N).
    """
    log_det = float(digamma((count - np.arange(1, size + 1)) / 2).sum()) + size * math.log(2 / count)
    return ((count + 1) * size / (count - size - 2) - size + log_det) / 2


def gaussian_losses(size: int, repeats: int, seed: int) -> dict[int, float]:
    """Mean KL(truth, likeliest Gaussian) in nats over `repeats` data sets, for each of COUNTS."""
    truth = gaussian(size, CORRELATION)

    def loss(count: int, k: int) -> float:
        return float(kl_divergence(truth, likeliest_gaussian(sample_from(truth, count, seed + k))))

    return {count: float(np.mean([loss(count, k) for k in range(repeats)])) for count in COUNTS}


def plane_losses(seed: int) -> dict[str, Any]:
    """Losses in nats of estimates from one data set in the plane, by bandwidth, by components and as selected."""
    x, test = PLANE.sample(PLANE_COUNT, seed), PLANE.sample(HELD_OUT, seed + 1)
    truth = float(PLANE.log_density(test).mean())
    kde, gmm = kernels(x), components(x, COMPONENTS[-1])
    losses = {
        "truth": truth,
        "h": float(kde.bandwidth),
        "kde": truth - float(kde.log_density(test).mean()),
        "k": int((gmm.weights > 0).sum()),
        "gmm": truth - float(gmm.log_density(test).mean()),
        "components": np.array([truth - float(em(x, k).log_density(test.double()).mean()) for k in COMPONENTS]),
    }
    by_bandwidth = []
    for h in BANDWIDTHS:
        kde.bandwidth.copy_(h)
        by_bandwidth.append(truth - float(kde.log_density(test).mean()))
    return {**losses, "bandwidth": np.array(by_bandwidth)}


def dimension_losses(size: int, repeats: int, seed: int) -> tuple[float, float]:
    """Losses in nats of the kernel density and of the Gaussian from CROWD points in `size` dimensions.

    For the kernels the median over `repeats` data sets, because a single point far from every kernel has an unbounded
    loss; for the Gaussian the mean.
    """
    truth = gaussian(size)
    losses = []
    for k in range(seed, seed + 2 * repeats, 2):
        x, test = sample_from(truth, CROWD, k), sample_from(truth, HELD_OUT, k + 1)
        gap = truth.log_prob(test.double()) - kernels(x).log_density(test)
        losses.append((float(gap.mean()), float(kl_divergence(truth, likeliest_gaussian(x)))))
    of_kernels, of_gaussian = np.array(losses).T
    return float(np.median(of_kernels)), float(of_gaussian.mean())


def measure(setting: Setting) -> Findings:
    """Estimate all densities and compare their losses with theory."""
    repeats, planes, crowds = (100, 4, 5) if setting.quick else (1000, 20, 15)
    first = 1_000_000 * setting.seed  # the seed of the first data set
    gauss = {size: gaussian_losses(size, repeats, first) for size in (1, 2)}
    plane = [plane_losses(first + 2 * k) for k in range(planes)]
    mean = {name: np.mean([losses[name] for losses in plane], axis=0) for name in plane[0]}
    crowd = np.array([dimension_losses(size, crowds, first) for size in DIMENSIONS])
    numbers = (
        *gaussian_numbers(gauss, repeats),
        *plane_numbers(mean, planes),
        *dimension_numbers(crowd, crowds),
    )
    plot_data = {"gauss": gauss, "plane": mean, "crowd": crowd, **densities(first)}
    return Findings(numbers, plot_data)


def gaussian_numbers(losses: dict[int, dict[int, float]], repeats: int) -> list[Number]:
    """The Gaussian's losses in units of p/(2N); 2N times a loss has a chi^2 distribution, which gives the tolerance."""
    numbers = []
    for size, by_count in losses.items():
        p = parameters(size)
        for count in (SHOWN, COUNTS[-1]):
            unit = p / (2 * count)
            numbers.append(
                near(f"Gaussian in {size}-D from {count} points: KL loss / (p/2N), p = {p}",
                     by_count[count] / unit, expected_loss(count, size) / unit, 5 * chance(p, repeats),
                     "p/(2N) (Akaike 1974) with small-sample correction (Wishart moments)")
            )  # fmt: skip
    return numbers


def chance(p: int, repeats: int) -> float:
    """The relative standard error of a mean over `repeats` of chi^2 with p degrees of freedom."""
    return math.sqrt(2 / p / repeats)


def plane_numbers(mean: dict[str, Any], repeats: int) -> list[Number]:
    """The minimal losses, the losses of the families' selections, and the log-likelihood of the truth."""
    entropy = math.log(len(PLANE.centres)) + math.log(2 * math.pi * math.e * PLANE.deviation**2)
    right = COMPONENTS.index(len(PLANE.centres))
    p = 6 * len(PLANE.centres) - 1
    every = [*mean["bandwidth"], *mean["components"], mean["kde"], mean["gmm"]]
    return [
        near("four Gaussians: true mean log p on held-out points, nats", float(mean["truth"]), -entropy,
             5 / math.sqrt(repeats * HELD_OUT), "minus the entropy log 4 + log 2πeσ² of Gaussians without overlap"),
        at_least("smallest held-out loss of all estimates, nats", float(min(every)), 0,
                 "KL >= 0 in expectation (Gibbs)"),
        near(f"mixture of 4: held-out loss / (p/2N), p = {p}",
             float(mean["components"][right]) * 2 * PLANE_COUNT / p, 1, 5 * chance(p, repeats), "p/(2N) (Akaike 1974)"),
        at_most("kernels: loss with the family's bandwidth minus the minimum over bandwidths, nats",
                float(mean["kde"] - mean["bandwidth"].min()), 0.05, "the family selects it by held-out likelihood"),
        at_least("kernels: minimal loss / loss of the mixture of 4",
                 float(mean["bandwidth"].min() / mean["components"][right]), 1.3, "the mixture has the true form"),
        reported("mixture: loss with the family's number of components, nats", float(mean["gmm"]),
                 "selected by BIC, from one start of EM"),
    ]  # fmt: skip


def dimension_numbers(crowd: NDArray[np.float64], repeats: int) -> list[Number]:
    """The growth of the losses with the dimension: crowd [dimensions, 2], of the kernels and of the Gaussian."""
    kde, gauss = crowd.T
    last = DIMENSIONS[-1]
    return [
        at_least(f"kernels: smallest growth factor of the loss per doubling of the dimension, 1 to {last}",
                 float((kde[1:] / kde[:-1]).min()), 1, "the loss grows with the dimension"),
        at_most(f"kernels in {last}-D from {CROWD} points: loss, nats", float(kde[-1]), last / 2 * math.log(2),
                "d/2 log 2, the loss of a single kernel (Jensen's inequality)"),
        near(f"Gaussian in {last}-D from {CROWD} points: loss, nats", float(gauss[-1]), expected_loss(CROWD, last),
             5 * chance(parameters(last), repeats) * expected_loss(CROWD, last),
             f"p/(2N) = {parameters(last) / 2 / CROWD:.3f}, with small-sample correction"),
        at_least(f"kernels in {last}-D: loss / loss of the Gaussian", float(kde[-1] / gauss[-1]), 10,
                 "the curse of dimensionality"),
    ]  # fmt: skip


def densities(seed: int) -> dict[str, Any]:
    """The data of the pictures: points, and densities on lattices."""
    line = torch.linspace(-REACH, REACH, 4 * BINS)[:, None]
    lattice = distances.lattice(BINS, REACH)
    normal = {size: gaussian(size, CORRELATION) for size in (1, 2)}
    x = {size: sample_from(truth, SHOWN, seed) for size, truth in normal.items()}
    estimate = {size: likeliest_gaussian(points_) for size, points_ in x.items()}
    plane = PLANE.sample(PLANE_COUNT, seed)
    return {
        "points": {**x, "plane": plane},
        "line": {
            "truth": normal[1].log_prob(line.double()).exp(),
            "Gaussian": estimate[1].log_prob(line.double()).exp(),
            "kernels": kernels(x[1]).log_density(line).exp(),
        },
        "ellipses": {
            "truth": normal[2].log_prob(lattice.double()).exp(),
            "Gaussian": estimate[2].log_prob(lattice.double()).exp(),
        },
        "lattice": {
            "truth": PLANE.log_density(lattice).exp(),
            "mixture": components(plane, COMPONENTS[-1]).log_density(lattice).exp(),
            "kernels": kernels(plane).log_density(lattice).exp(),
            "Gaussian": likeliest_gaussian(plane).log_prob(lattice.double()).exp(),
        },
    }


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the estimates, the losses by bandwidth and components, and the losses by dimension."""
    plot_data = findings[0].plot_data
    return [_gaussians(plot_data), _planes(plot_data), _curves(plot_data), _dimensions(findings)]


def _gaussians(plot_data: Mapping[str, Any]) -> Picture:
    fig, axes = plots.figure(1, 3, width=4.8, height=4.4)
    left, middle, right = axes[0]
    line = np.linspace(-REACH, REACH, 4 * BINS)
    left.hist(plot_data["points"][1][:, 0].numpy(), bins=20, range=(-REACH, REACH), density=True, color="#d0d0d0")
    for (name, density), color in zip(plot_data["line"].items(), (plots.BLACK, plots.BLUE, plots.ORANGE), strict=True):
        left.plot(line, density, color=color, label=name, linestyle="--" if name == "truth" else "-")
    left.set(title=f"1-D, from {SHOWN} points", xlabel="$x$", ylabel="density", ylim=(0, 2.2))
    left.legend(loc="upper left", fontsize=11)
    middle.scatter(*plot_data["points"][2].T, s=12, color="#a0a0a0")
    for (name, density), color in zip(plot_data["ellipses"].items(), (plots.BLACK, plots.BLUE), strict=True):
        _contours(middle, density, color, "--" if name == "truth" else "-")
    plots.plane(middle, f"2-D, from {SHOWN} points", REACH)
    for (size, losses), color in zip(plot_data["gauss"].items(), (plots.BLUE, plots.RED), strict=True):
        right.loglog(*zip(*losses.items(), strict=True), "o", color=color, label=f"{size}-D: measured")
        p = parameters(size)
        right.loglog(COUNTS, [p / 2 / n for n in COUNTS], "--", color=color, label=f"p/(2N), p = {p}")
    right.set(title="KL loss of the Gaussian", xlabel="points N", ylabel="KL(truth, estimate), nats")
    right.legend(fontsize=11)
    return Picture(
        "density_gaussian.png",
        f"A Gaussian estimated from {SHOWN} points (solid) and the truth (dashed). Left: in 1-D, with the histogram of "
        "the points and the kernel density. Middle: in 2-D. Right: the mean loss of the estimate, p/(2N).",
        plots.png(fig),
    )


def _planes(plot_data: Mapping[str, Any]) -> Picture:
    names = {"truth": "Truth", "mixture": "Mixture, components by BIC", "kernels": "Kernels, bandwidth held out",
             "Gaussian": "One Gaussian"}  # fmt: skip
    fig, axes = plots.figure(1, 4, width=3.7, height=3.9)
    for axis, (name, title) in zip(axes[0], names.items(), strict=True):
        axis.scatter(*plot_data["points"]["plane"].T, s=3, color="#a0a0a0")
        _contours(axis, plot_data["lattice"][name], plots.BLACK if name == "truth" else plots.BLUE, "-")
        plots.plane(axis, title, REACH)
        axis.title.set_fontsize(12.5)
    return Picture(
        "density_plane.png",
        f"Four Gaussians, {PLANE_COUNT} of their points, and estimates: the mixture has the right form, the kernels "
        "follow the points too closely, one Gaussian is too rigid.",
        plots.png(fig),
    )


def _contours(axis: Axes, density: Tensor, color: str, style: str) -> None:
    """Contours of the density at fixed fractions of its maximum."""
    table = density.unflatten(0, (BINS, BINS)).T.numpy()
    middles = (np.arange(BINS) + 0.5) / BINS * 2 * REACH - REACH
    axis.contour(middles, middles, table, levels=table.max() * np.array([0.05, 0.2, 0.5, 0.8]), colors=color,
                 linestyles=style, linewidths=1.4)  # fmt: skip


def _curves(plot_data: Mapping[str, Any]) -> Picture:
    mean = plot_data["plane"]
    truth = float(mean["truth"])
    fig, axes = plots.figure(1, 2, width=5.6, height=4.4)
    left, right = axes[0]
    left.semilogx(BANDWIDTHS, truth - mean["bandwidth"], color=plots.ORANGE, label="kernels")
    left.plot(mean["h"], truth - mean["kde"], "o", markersize=9, color=plots.RED, label="selected by the family, mean")
    left.set(
        title="Kernels by bandwidth", xlabel="bandwidth h", xlim=(0.01, 0.5), ylabel="held-out log-likelihood, nats"
    )
    right.plot(COMPONENTS, truth - mean["components"], "o-", color=plots.BLUE, label="mixture")
    right.plot(mean["k"], truth - mean["gmm"], "o", markersize=9, color=plots.RED, label="selected by the family, mean")
    right.set_xscale("log", base=2)
    right.set(title="Mixtures by components", xlabel="components", xticks=COMPONENTS, xticklabels=COMPONENTS)
    marks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    left.set_xticks(marks, marks)
    for axis in (left, right):
        axis.minorticks_off()
        axis.axhline(truth, color=plots.BLACK, linestyle="--", label="truth")
        axis.set_ylim(truth - 1.2, truth + 0.1)
        axis.legend(loc="lower center")
    return Picture(
        "density_curves.png",
        "A too small bandwidth or number of components loses as much as a too large one. No estimate exceeds the value "
        "of the truth, which is minus its entropy. Means over data sets.",
        plots.png(fig),
    )


def _dimensions(findings: Sequence[Findings]) -> Picture:
    kde, gauss = np.mean([run.plot_data["crowd"] for run in findings], axis=0).T
    sizes = np.array(DIMENSIONS)
    fig, axes = plots.figure(1, 2, width=5.8, height=4.6)
    for axis in axes[0]:
        axis.plot(sizes, sizes / 2 * math.log(2), "--", color=plots.ORANGE, label="one kernel: d/2 log 2")
        axis.plot(sizes, kde, "o-", color=plots.ORANGE, label="kernels")
        axis.plot(
            sizes, [expected_loss(CROWD, d) for d in DIMENSIONS], "--", color=plots.BLUE, label="Gaussian: theory"
        )
        axis.plot(sizes, gauss, "o", color=plots.BLUE, label="Gaussian")
        axis.set(xlabel="dimension d", ylabel="loss, nats")
    axes[0, 0].set(title=f"From {CROWD} points", xticks=(1, *DIMENSIONS[3:]))
    axes[0, 0].legend(fontsize=12)
    axes[0, 1].set_xscale("log", base=2)
    axes[0, 1].set(title="The same, both axes logarithmic", yscale="log", xticks=DIMENSIONS, xticklabels=DIMENSIONS)
    return Picture(
        "density_dimension.png",
        f"{CROWD} points are many in one dimension and few in 32: the loss of the kernels grows towards that of a "
        "single kernel, while the Gaussian loses only for its parameters.",
        plots.png(fig),
    )


EXPERIMENT = Experiment(
    title="Density estimation from samples",
    claim="To learn a distribution is to estimate its density from samples; the assumed form decides the loss.",
    method="The families gmm and kde on known densities: the likeliest Gaussian, which loses p/(2N) for p parameters "
    "(Akaike 1974); kernels by bandwidth (Rosenblatt 1956; Parzen 1962) and mixtures by number of components (Dempster "
    "et al. 1977; Schwarz 1978) on four Gaussians in the plane; and both in 1 to 32 dimensions.",
    measure=measure,
    draw=draw,
)
