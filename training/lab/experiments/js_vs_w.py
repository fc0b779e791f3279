"""Two parallel lines, whose distance the Jensen-Shannon divergence does not measure.

    P_0: x = (0, u),   P_theta: x = (theta, u),   u ~ U(-1/2, 1/2)             (Arjovsky et al. 2017, Example 1)

    JS(P_0, P_theta) = log 2 for every theta but 0,        W_1(P_0, P_theta) = |theta|

With the penalty lambda (|grad C| - 1)^2 the optimal critic is slightly too steep: with slope g between the lines its
objective is g |theta| - lambda (g - 1)^2, so g = 1 + |theta| / (2 lambda), and the critic's distance is g |theta|.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import Family, Recipe
from models.families.gan import GANConfig
from models.families.wgan_gp import WGANGPConfig
from training.lab import plots
from training.lab.distances import histogram, jensen_shannon, wasserstein1
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_least, at_most, near
from training.lab.fitting import fit, iterations, make_trainer, points
from training.lab.fixed_generator import FixedGeneratorGAN, FixedGeneratorWGANGP
from training.loop import Trainer

POINTS = 20_000
CLOUD = 1000
"""Points per line for the exact distances."""
BATCH = 256
BINS = 40
THETAS = (-1.0, -0.75, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CRITICS = (0.1, 0.25, 0.5, 1.0)
LAMBDA = 20.0
CRITIC = WGANGPConfig(latent=2, groups=0, penalty=LAMBDA, penalty_share=1.0)
PLAYER = replace(CRITIC, penalty=1.0)
"""The critic of the game. A smaller penalty lets its slope change from 1 to -1 sooner when theta passes 0."""
WATCHED_STEPS = 1500
"""Steps of D during which the gradient of G's cost is recorded."""
START = 1.0
"""The initial theta of both games."""
ROUNDS, REPLIES = 60, 30
"""Steps of theta in a game, and steps of its opponent before each of them."""
REACH = 1.5
"""The distance that theta would move with a gradient of 1. Its steps shrink linearly, so that opponents can follow."""


def line(theta: Tensor | float, u: Tensor) -> Tensor:
    """The points (theta, u) for u [N]: [N, 2]."""
    return torch.stack((torch.as_tensor(theta, dtype=u.dtype).expand(len(u)), u), dim=1)


def uniform(count: int, seed: int) -> Tensor:
    """u ~ U(-1/2, 1/2): [count]."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5


def along(z: Tensor) -> Tensor:
    """u ~ U(-1/2, 1/2) from z [N, 2] ~ N(0, I): [N]."""
    return torch.special.ndtr(z[:, 0]) - 0.5


def generator(theta: Tensor | float) -> Callable[[Tensor], Tensor]:
    """The fixed G of P_theta."""
    return lambda z: line(theta, along(z))


def measure(setting: Setting) -> Findings:
    """Measure both distances, the critic's distance, the gradient under D, and both games."""
    js, w1 = distances(setting.seed)
    apart = [value for theta, value in zip(THETAS, js, strict=True) if theta]
    numbers: list[Number] = [
        near("JS: maximal difference from log 2 for theta != 0", max(abs(value - math.log(2)) for value in apart),
             0, 1e-9, "disjoint supports"),
        at_most("JS at theta = 0", js[THETAS.index(0.0)], 0.02, "0, plus the bias of histograms of 1,000 points"),
        near("W_1: maximal difference from |theta|",
             max(abs(value - abs(theta)) for theta, value in zip(THETAS, w1, strict=True)), 0, 0.04,
             "W_1 = |theta|, plus the bias of two sets of 1,000 points"),
    ]  # fmt: skip
    steps = 350 if setting.quick else 1500
    critics = {
        theta: critic_distance(theta, steps, setting.seed) for theta in (CRITICS[1::2] if setting.quick else CRITICS)
    }
    for theta, value in critics.items():
        biased = theta * (1 + theta / (2 * LAMBDA))
        numbers += [
            near(f"critic's distance at theta = {theta}", value, theta, 0.05 * theta, "W_1 = |theta|, within 5 %"),
            near(
                f"critic's distance at theta = {theta}, bias of the penalty included",
                value,
                biased,
                0.01 * theta,
                "|theta| (1 + |theta| / (2 lambda))",
            ),
        ]
    gradients = watch_gradient(WATCHED_STEPS // 6 if setting.quick else WATCHED_STEPS, setting.seed)
    numbers.append(at_most("gradient of log(1 - D(G)) at theta = 1: last value / maximum",
                           gradients["minimax"][-1] / max(gradients["minimax"]), 0.01,
                           "vanishes as D approaches its optimum (Arjovsky & Bottou 2017, Theorem 2.4)"))  # fmt: skip
    games = {name: play(name, ROUNDS // 3 if setting.quick else ROUNDS, setting.seed) for name in GAMES}
    numbers += [
        at_least(
            "theta after the game against D", abs(games["minimax"][-1]), 0.9 * START, "without a gradient theta stays"
        ),
        at_most(
            "theta after the game against the critic", abs(games["Wasserstein"][-1]), 0.05, "the critic's gradient is 1"
        ),
    ]
    return Findings(tuple(numbers), {"js": js, "w1": w1, "critics": critics, "gradients": gradients, "games": games})


def distances(seed: int) -> tuple[list[float], list[float]]:
    """JS by histograms and W_1 by optimal assignment of sets of points, for each of THETAS."""
    js, w1 = [], []
    for k, theta in enumerate(THETAS):
        x, y = line(0.0, uniform(CLOUD, 1000 * seed + 2 * k)), line(theta, uniform(CLOUD, 1000 * seed + 2 * k + 1))
        # Few bins along the lines, where the sets differ only by chance.
        js.append(jensen_shannon(*(histogram(side, BINS, 1.1).unflatten(1, (10, -1)).sum(2) for side in (x, y))))
        w1.append(wasserstein1(x, y))
    return js, w1


def critic_distance(theta: float, steps: int, seed: int) -> float:
    """The production critic's distance of P_0 and P_theta after `steps` steps, on unseen points."""
    dataset = points(line(0.0, uniform(POINTS, seed)))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, 2e-3, (0.0, 0.9), ema=20 * BATCH, cosine=True)
    family = fit(partial(FixedGeneratorWGANGP, fixed_generator=generator(theta)), CRITIC, dataset, recipe, seed)
    assert isinstance(family, FixedGeneratorWGANGP)
    fresh = uniform(POINTS, seed + 1)
    with torch.inference_mode():
        return float((family.criticize(line(0.0, fresh)) - family.criticize(line(theta, fresh))).mean())


def opponent(kind: Callable[..., Any], config: Any, theta: Tensor, steps: int, seed: int) -> Trainer:
    """A trainer of D or the critic alone, against the fixed P_theta, for `steps` iterations."""
    dataset = points(line(0.0, uniform(POINTS, seed)))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, lr=3e-3, betas=(0.5, 0.99))
    return make_trainer(partial(kind, fixed_generator=generator(theta)), config, dataset, recipe, seed)


COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "minimax": lambda logits: F.logsigmoid(-logits).mean(),
    "non-saturating": lambda logits: -F.logsigmoid(logits).mean(),
}
"""G's cost as a function of D's logits: log(1 - D(G(z))) and -log D(G(z))."""


def slope(cost: Callable[[Tensor], Tensor], logits: Callable[[Tensor], Tensor], theta: float, seed: int) -> float:
    """d cost / d theta of P_theta."""
    variable = torch.tensor(theta, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(logits(line(variable, uniform(POINTS, seed)))), variable)
    return float(gradient)


def discriminator_of(family: Family) -> Callable[[Tensor], Tensor]:
    """The function that gives D's logits, or the critic's score."""
    if isinstance(family, FixedGeneratorGAN):
        return family.discriminator
    assert isinstance(family, FixedGeneratorWGANGP)
    return family.criticize


def watch_gradient(steps: int, seed: int) -> dict[str, list[float]]:
    """|d cost / d theta| at theta = 1 for both costs, every 10 steps of D's training."""
    trainer = opponent(FixedGeneratorGAN, GANConfig(latent=2), torch.tensor(START), steps, seed)
    gradients: dict[str, list[float]] = {"steps": [], **{name: [] for name in COSTS}}
    for step in range(steps):
        trainer.train_step()
        if step % 10 == 9:
            gradients["steps"].append(step + 1)
            for name, cost in COSTS.items():
                gradients[name].append(abs(slope(cost, discriminator_of(trainer.family), START, seed + 1)))
    return gradients


GAMES: dict[str, tuple[Callable[..., Any], Any, Callable[[Tensor], Tensor]]] = {
    "minimax": (FixedGeneratorGAN, GANConfig(latent=2), COSTS["minimax"]),
    "Wasserstein": (FixedGeneratorWGANGP, PLAYER, lambda score: -score.mean()),
}


def play(name: str, rounds: int, seed: int) -> list[float]:
    """The path of theta from START, by plain gradient steps against an opponent with a head start.

    Plain, because Adam divides by a gradient's own size and would move along a vanishing one.
    """
    kind, config, cost = GAMES[name]
    theta = torch.tensor(START)
    head_start = 300
    trainer = opponent(kind, config, theta, head_start + rounds * REPLIES, seed)
    discriminator = discriminator_of(trainer.family)
    path = [START]
    for k in range(head_start + rounds * REPLIES):
        trainer.train_step()
        if k >= head_start and k % REPLIES == REPLIES - 1:
            theta -= (
                2 * REACH / rounds * (1 - (len(path) - 1) / rounds) * slope(cost, discriminator, float(theta), seed + k)
            )
            path.append(float(theta))
    return path


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw both distances by theta, the vanishing gradient, and the games."""
    plot_data = findings[0].plot_data
    fig, axes = plots.figure(1, 3, width=4.8, height=4.4)
    _distances(axes[0, 0], plot_data)
    gradients, panel = plot_data["gradients"], axes[0, 1]
    for name, color in (("minimax", plots.BLUE), ("non-saturating", plots.ORANGE)):
        panel.semilogy(gradients["steps"], [max(value, 1e-12) for value in gradients[name]], color=color, label=name)
    panel.set(title="Gradient for G at θ = 1", xlabel="D's steps", ylabel="|∂ cost / ∂θ|")
    panel.legend(loc="center right")
    panel = axes[0, 2]
    for (name, path), color in zip(plot_data["games"].items(), (plots.BLUE, plots.RED), strict=True):
        panel.plot(path, color=color, label=f"against {'D' if name == 'minimax' else 'the critic'}")
    panel.axhline(0, color=plots.BLACK, linewidth=1, linestyle="--")
    panel.set(title="θ learned by both games", xlabel="G's steps", ylabel="θ", ylim=(-0.15, 1.15))
    panel.legend(loc="center right")
    return [
        Picture(
            "js_vs_w.png",
            "Left: both distances of the lines, and the critic's distance. Middle: the gradient at θ = 1 while D "
            "learns; that of log(1 - D) vanishes, that of -log D does not, but it does not measure a distance. "
            "Right: plain gradient steps on θ against an opponent with a head start of 300 steps.",
            plots.png(fig),
        )
    ]


def _distances(panel: Any, plot_data: Any) -> None:
    panel.plot(THETAS, [abs(theta) for theta in THETAS], color=plots.RED, linewidth=1.2)
    panel.plot(THETAS, plot_data["w1"], "o", color=plots.RED, label="W₁ of samples, and |θ|")
    apart = [theta for theta in THETAS if theta]
    panel.plot(apart, [js for js, theta in zip(plot_data["js"], THETAS, strict=True) if theta], "s", color=plots.BLUE)
    panel.plot([0], [plot_data["js"][THETAS.index(0.0)]], "s", color=plots.BLUE, label="JS of samples, and log 2")
    panel.axhline(math.log(2), color=plots.BLUE, linewidth=1.2)
    panel.plot(list(plot_data["critics"]), list(plot_data["critics"].values()), "x", color=plots.BLACK, markersize=11,
               markeredgewidth=2.5, label="the critic's distance")  # fmt: skip
    panel.set(title="Distance of two lines", xlabel="θ", ylabel="nats; distance", ylim=(-0.05, 1.5))
    panel.legend(loc="upper center")


EXPERIMENT = Experiment(
    title="Jensen-Shannon gives no gradient, Wasserstein does",
    claim="Real and generated data lie on thin manifolds that hardly meet. There JS is log 2 at any distance, and D "
    "separates them without a useful gradient; W_1 measures the distance.",
    method="The parallel lines of Arjovsky et al. (2017, arXiv 1701.07875, Example 1). JS and W_1 of 1,000 points per "
    "line, W_1 by optimal assignment; the lecture's D (the family gan) and the critic of wgan_gp with λ = 20, both by "
    "the production loop against fixed lines; and one number θ learned in both games, with λ = 1 for the critic.",
    measure=measure,
    draw=draw,
)
