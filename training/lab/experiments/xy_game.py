"""V(x, y) = x y: the simplest game whose equilibrium gradient steps do not reach.

    min_x max_y  x y                                   equilibrium: x = y = 0

With z = x + i y the update rules are linear maps of the plane, so nothing is estimated: each step multiplies the radius
by a factor that theory gives.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.lab import plots
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_most, near

Point = NDArray[np.float64]
"""(x, y)."""
Play = Callable[[Point, Point, float], Point]
"""The next point from the current point, the previous point and eta."""

ETA = 0.1
START: Point = np.array([1.0, 0.0])


def slope(z: Point) -> Point:
    """(dV/dx, -dV/dy), which both players descend."""
    return np.array([z[1], -z[0]])


def flow(z: Point, _: Point, eta: float) -> Point:
    """The continuous gradient flow over a time eta, by ten steps of the classical Runge-Kutta method: a circle."""
    h = eta / 10
    for _i in range(10):
        a = slope(z)
        b = slope(z - h / 2 * a)
        c = slope(z - h / 2 * b)
        d = slope(z - h * c)
        z = z - h / 6 * (a + 2 * b + 2 * c + d)
    return z


def simultaneous(z: Point, _: Point, eta: float) -> Point:
    """Both players step at once."""
    return z - eta * slope(z)


def alternating(z: Point, _: Point, eta: float) -> Point:
    """x steps first; y uses the new x."""
    x = z[0] - eta * z[1]
    return np.array([x, z[1] + eta * x])


def extragradient(z: Point, _: Point, eta: float) -> Point:
    """A step with the gradient at the point after a trial step (Korpelevich 1976)."""
    return z - eta * slope(z - eta * slope(z))


def optimistic(z: Point, previous: Point, eta: float) -> Point:
    """A step with twice the gradient minus the previous one (Daskalakis et al. 2018, arXiv 1711.00141)."""
    return z - 2 * eta * slope(z) + eta * slope(previous)


PLAYS: dict[str, Play] = {
    "continuous flow": flow,
    "simultaneous": simultaneous,
    "alternating": alternating,
    "extragradient": extragradient,
    "optimistic": optimistic,
}


def walk(play: Play, steps: int, eta: float = ETA) -> NDArray[np.float64]:
    """The path of (x, y) from START: [steps + 1, 2]."""
    path = [START, START]
    for _ in range(steps):
        path.append(play(path[-1], path[-2], eta))
    return np.array(path[1:])


def factor(path: NDArray[np.float64]) -> float:
    """The factor of the radius per step: the geometric mean over the second half of `path`."""
    radius = np.hypot(*path.T)
    half = len(path) // 2
    return float((radius[-1] / radius[half]) ** (1 / (len(path) - 1 - half)))


def measure(setting: Setting) -> Findings:
    """Run all update rules and compare their radii with theory."""
    steps = 300 if setting.quick else 1000
    paths = {name: walk(play, steps) for name, play in PLAYS.items()}
    radii = {name: np.hypot(*path.T) for name, path in paths.items()}
    x, y = paths["alternating"].T
    invariant = x**2 + y**2 - ETA * x * y  # of the map (x - eta y, y + eta (x - eta y))
    growth = math.sqrt(1 + ETA**2)
    numbers: list[Number] = [
        near("continuous flow: maximal distance of the radius from 1", float(abs(radii["continuous flow"] - 1).max()),
             0, 1e-6, "d(x² + y²)/dt = 0"),
        near("simultaneous: factor of the radius per step", factor(paths["simultaneous"]), growth, 1e-6, "√(1 + η²)"),
        near(f"simultaneous: radius after {steps} steps / (1 + η²)^(steps/2)",
             float(radii["simultaneous"][-1] / growth**steps), 1, 1e-6, "√(1 + η²) per step"),
        near("alternating: maximal change of x² + y² - η x y", float(abs(invariant - 1).max()), 0, 1e-6,
             "an invariant quadratic form: |eigenvalues| = 1"),
        at_most("alternating: maximal radius", float(radii["alternating"].max()), math.sqrt(1 / (1 - ETA / 2)),
                "√(1 / (1 - η/2)), the semi-major axis of the ellipse"),
        near("extragradient: factor of the radius per step", factor(paths["extragradient"]),
             math.sqrt(1 - ETA**2 + ETA**4), 1e-6, "√(1 - η² + η⁴)"),
        near("optimistic: factor of the radius per step", factor(paths["optimistic"]), abs(optimistic_eigenvalue()),
             1e-6, "the larger root of λ² - (1 - 2iη) λ - iη = 0 and of its conjugate"),
    ]  # fmt: skip
    return Findings(tuple(numbers), {"paths": paths})


def optimistic_eigenvalue(eta: float = ETA) -> complex:
    """The dominant eigenvalue of z' = z + 2 i eta z - i eta z_previous, with points as complex numbers."""
    roots = np.roots([1, -(1 + 2j * eta), 1j * eta])
    return complex(roots[np.abs(roots).argmax()])


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the paths in the plane, and the radii."""
    paths = findings[0].plot_data["paths"]
    fig, axes = plots.figure(1, 2, width=6.0, height=5.0)
    for color, (name, path) in zip(plots.CYCLE, paths.items(), strict=False):
        start = path[:300]
        axes[0, 0].plot(*start.T, color=color, label=name, linewidth=1.6)
        axes[0, 1].semilogy(np.hypot(*start.T), color=color, label=name)
    axes[0, 0].plot(0, 0, marker="+", markersize=14, color=plots.BLACK)
    axes[0, 0].annotate("equilibrium", (0, 0), (0.15, -0.55), fontsize=12)
    plots.plane(axes[0, 0], "300 steps of η = 0.1 from (1, 0)", 4.6)
    axes[0, 0].set(xlabel="$x$", ylabel="$y$")
    axes[0, 1].set(title="Distance from the equilibrium", xlabel="steps", ylabel="radius")
    axes[0, 1].legend()
    picture = Picture(
        "xy_game.png",
        "Five update rules for V = x y. Simultaneous steps spiral outwards; alternating steps stay on an ellipse; "
        "extragradient and optimistic steps converge.",
        plots.png(fig),
    )
    return [picture]


EXPERIMENT = Experiment(
    title="The game V = x y does not converge",
    claim="Two players that both follow their gradients need not reach the equilibrium, even in a simple game.",
    method="min over x, max over y of x y, from (1, 0) with steps of η = 0.1 in double precision: the continuous flow, "
    "simultaneous and alternating gradient steps, extragradient (Korpelevich 1976) and optimistic gradients "
    "(Daskalakis et al. 2018, arXiv 1711.00141). The family's training loop alternates.",
    measure=measure,
    draw=draw,
)
