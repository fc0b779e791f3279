"""Two lines that do not meet: how far apart they are, the Jensen-Shannon divergence does not say.

    P_0: x = (0, u),   P_theta: x = (theta, u),   u ~ U(-1/2, 1/2)             (Arjovsky et al. 2017, Example 1)

    JS(P_0, P_theta) = log 2 for every theta but 0,        W_1(P_0, P_theta) = |theta|

With the penalty lambda (|grad C| - 1)^2 the best critic is a little too steep: over a way of |theta| the slope g earns
g |theta| - lambda (g - 1)^2, so that g = 1 + |theta| / (2 lambda), and the critic's distance is g |theta|.
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
from training.lab.fitting import begin, fit, iterations, points
from training.lab.fixed_generator import FixedGeneratorGAN, FixedGeneratorWGANGP
from training.loop import Trainer

POINTS = 20_000
CLOUD = 1000
"""Points of each line for the exact distances."""
BATCH = 256
BINS = 40
THETAS = (-1.0, -0.75, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CRITICS = (0.1, 0.25, 0.5, 1.0)
LAMBDA = 20.0
CRITIC = WGANGPConfig(latent=2, groups=0, penalty=LAMBDA, penalty_share=1.0)
PLAYER = replace(CRITIC, penalty=1.0)
"""The critic of the game: between a slope of 1 and one of -1, where theta passes by 0, stands the penalty."""
LESSONS = 1500
"""D's steps, over which the gradient that it leaves to G is watched."""
START = 1.0
"""Where the two games begin."""
ROUNDS, REPLIES = 60, 30
"""Of a game: steps of theta, and steps of its opponent before each."""
REACH = 1.5
"""How far theta would go by a gradient of 1. Its steps become shorter evenly, for no opponent answers at once."""


def line(theta: Tensor | float, u: Tensor) -> Tensor:
    """The points (theta, u) for u [N]: [N, 2]."""
    return torch.stack((torch.as_tensor(theta, dtype=u.dtype).expand(len(u)), u), dim=1)


def place(count: int, seed: int) -> Tensor:
    """u ~ U(-1/2, 1/2): [count]."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5


def along(z: Tensor) -> Tensor:
    """The same from z [N, 2] ~ N(0, I): [N]."""
    return torch.special.ndtr(z[:, 0]) - 0.5


def generator(theta: Tensor | float) -> Callable[[Tensor], Tensor]:
    """The given G that draws P_theta."""
    return lambda z: line(theta, along(z))


def measure(setting: Setting) -> Findings:
    """The distances themselves, what opponents make of them, and the games."""
    js, w1 = distances(setting.seed)
    apart = [value for theta, value in zip(THETAS, js, strict=True) if theta]
    numbers: list[Number] = [
        near("JS, greatest difference from log 2 over theta != 0", max(abs(value - math.log(2)) for value in apart),
             0, 1e-9, "supports that do not meet"),
        at_most("JS at theta = 0", js[THETAS.index(0.0)], 0.02, "0, and what histograms of 1,000 points add"),
        near("W_1, greatest difference from |theta|",
             max(abs(value - abs(theta)) for theta, value in zip(THETAS, w1, strict=True)), 0, 0.04,
             "W_1 = |theta|, and what two clouds of 1,000 points add"),
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
                "the same, with the penalty's bias", value, biased, 0.01 * theta, "|theta| (1 + |theta| / (2 lambda))"
            ),
        ]
    lessons = watch_gradient(LESSONS // 6 if setting.quick else LESSONS, setting.seed)
    numbers.append(at_most("gradient that D leaves to log(1 - D(G)) at theta = 1, of its greatest",
                           lessons["minimax"][-1] / max(lessons["minimax"]), 0.01,
                           "vanishes as D nears its optimum (Arjovsky & Bottou 2017, Theorem 2.4)"))  # fmt: skip
    games = {name: play(name, ROUNDS // 3 if setting.quick else ROUNDS, setting.seed) for name in GAMES}
    numbers += [
        at_least("theta after the game against D", abs(games["minimax"][-1]), 0.9 * START, "no gradient, no way"),
        at_most("theta after the game against the critic", abs(games["Wasserstein"][-1]), 0.05, "its gradient is 1"),
    ]
    return Findings(tuple(numbers), {"js": js, "w1": w1, "critics": critics, "lessons": lessons, "games": games})


def distances(seed: int) -> tuple[list[float], list[float]]:
    """JS by histograms and W_1 by the best assignment, both exactly of the clouds, for each of THETAS."""
    js, w1 = [], []
    for k, theta in enumerate(THETAS):
        x, y = line(0.0, place(CLOUD, 1000 * seed + 2 * k)), line(theta, place(CLOUD, 1000 * seed + 2 * k + 1))
        # Few along the lines, for there the clouds differ by chance alone.
        js.append(jensen_shannon(*(histogram(side, BINS, 1.1).unflatten(1, (10, -1)).sum(2) for side in (x, y))))
        w1.append(wasserstein1(x, y))
    return js, w1


def critic_distance(theta: float, steps: int, seed: int) -> float:
    """What the production critic says of P_0 and P_theta after so many steps, on points it has not seen."""
    dataset = points(line(0.0, place(POINTS, seed)))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, 2e-3, (0.0, 0.9), ema=20 * BATCH, cosine=True)
    family = fit(partial(FixedGeneratorWGANGP, given=generator(theta)), CRITIC, dataset, recipe, seed)
    assert isinstance(family, FixedGeneratorWGANGP)
    fresh = place(POINTS, seed + 1)
    with torch.inference_mode():
        return float((family.criticize(line(0.0, fresh)) - family.criticize(line(theta, fresh))).mean())


def opponent(kind: Callable[..., Any], config: Any, theta: Tensor, steps: int, seed: int) -> Trainer:
    """A trainer whose one player answers P_theta, for `steps` iterations."""
    dataset = points(line(0.0, place(POINTS, seed)))
    recipe = Recipe(iterations(steps, BATCH, dataset), BATCH, lr=3e-3, betas=(0.5, 0.99))
    return begin(partial(kind, given=generator(theta)), config, dataset, recipe, seed)


COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "minimax": lambda logits: F.logsigmoid(-logits).mean(),
    "non-saturating": lambda logits: -F.logsigmoid(logits).mean(),
}
"""G's cost by D's logits: log(1 - D(G(z))) and -log D(G(z))."""


def slope(cost: Callable[[Tensor], Tensor], judge: Callable[[Tensor], Tensor], theta: float, seed: int) -> float:
    """d cost / d theta of P_theta."""
    at = torch.tensor(theta, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(judge(line(at, place(POINTS, seed)))), at)
    return float(gradient)


def judge_of(family: Family) -> Callable[[Tensor], Tensor]:
    """D's logits, or the critic's score."""
    if isinstance(family, FixedGeneratorGAN):
        return family.discriminator
    assert isinstance(family, FixedGeneratorWGANGP)
    return family.criticize


def watch_gradient(steps: int, seed: int) -> dict[str, list[float]]:
    """|d cost / d theta| at theta = 1 for both costs, as D learns: every 10 of its steps."""
    trainer = opponent(FixedGeneratorGAN, GANConfig(latent=2), torch.tensor(START), steps, seed)
    found: dict[str, list[float]] = {"steps": [], **{name: [] for name in COSTS}}
    for step in range(steps):
        trainer.train_step()
        if step % 10 == 9:
            found["steps"].append(step + 1)
            for name, cost in COSTS.items():
                found[name].append(abs(slope(cost, judge_of(trainer.family), START, seed + 1)))
    return found


GAMES: dict[str, tuple[Callable[..., Any], Any, Callable[[Tensor], Tensor]]] = {
    "minimax": (FixedGeneratorGAN, GANConfig(latent=2), COSTS["minimax"]),
    "Wasserstein": (FixedGeneratorWGANGP, PLAYER, lambda score: -score.mean()),
}


def play(name: str, rounds: int, seed: int) -> list[float]:
    """theta from START on, by plain gradient steps against an opponent that has learned P_START well before.

    Plain, since Adam divides by a gradient's own size and would walk by the faintest one.
    """
    kind, config, cost = GAMES[name]
    theta = torch.tensor(START)
    head_start = 300
    trainer = opponent(kind, config, theta, head_start + rounds * REPLIES, seed)
    judge = judge_of(trainer.family)
    path = [START]
    for k in range(head_start + rounds * REPLIES):
        trainer.train_step()
        if k >= head_start and k % REPLIES == REPLIES - 1:
            theta -= 2 * REACH / rounds * (1 - (len(path) - 1) / rounds) * slope(cost, judge, float(theta), seed + k)
            path.append(float(theta))
    return path


def draw(found: Sequence[Findings]) -> list[Picture]:
    """Both distances by theta, the vanishing gradient, and the games."""
    shown = found[0].shown
    fig, axes = plots.figure(1, 3, width=4.8, height=4.4)
    _distances(axes[0, 0], shown)
    lessons, panel = shown["lessons"], axes[0, 1]
    for name, color in (("minimax", plots.BLUE), ("non-saturating", plots.ORANGE)):
        panel.semilogy(lessons["steps"], [max(value, 1e-12) for value in lessons[name]], color=color, label=name)
    panel.set(title="What D leaves to G, θ = 1", xlabel="D's steps", ylabel="|∂ cost / ∂θ|")
    panel.legend(loc="center right")
    panel = axes[0, 2]
    for (name, path), color in zip(shown["games"].items(), (plots.BLUE, plots.RED), strict=True):
        panel.plot(path, color=color, label=f"against {'D' if name == 'minimax' else 'the critic'}")
    panel.axhline(0, color=plots.BLACK, linewidth=1, linestyle="--")
    panel.set(title="θ learned by both games", xlabel="G's steps", ylabel="θ", ylim=(-0.15, 1.15))
    panel.legend(loc="center right")
    return [
        Picture(
            "js_vs_w.png",
            "Left: both distances of the lines, and the critic's. Middle: the gradient that reaches θ = 1 as D learns; "
            "that of log(1 - D) vanishes, that of -log D does not, but has no meaning as a distance. "
            "Right: plain gradient steps on θ, against an opponent that has a head start of 300 steps.",
            plots.png(fig),
        )
    ]


def _distances(panel: Any, shown: Any) -> None:
    panel.plot(THETAS, [abs(theta) for theta in THETAS], color=plots.RED, linewidth=1.2)
    panel.plot(THETAS, shown["w1"], "o", color=plots.RED, label="W₁ of clouds, and |θ|")
    apart = [theta for theta in THETAS if theta]
    panel.plot(apart, [js for js, theta in zip(shown["js"], THETAS, strict=True) if theta], "s", color=plots.BLUE)
    panel.plot([0], [shown["js"][THETAS.index(0.0)]], "s", color=plots.BLUE, label="JS of clouds, and log 2")
    panel.axhline(math.log(2), color=plots.BLUE, linewidth=1.2)
    panel.plot(list(shown["critics"]), list(shown["critics"].values()), "x", color=plots.BLACK, markersize=11,
               markeredgewidth=2.5, label="the critic's distance")  # fmt: skip
    panel.set(title="Distance of two lines", xlabel="θ", ylabel="nats; distance", ylim=(-0.05, 1.5))
    panel.legend(loc="upper center")


EXPERIMENT = Experiment(
    title="Jensen-Shannon gives no gradient, Wasserstein does",
    claim="Real data and draws lie on thin manifolds that hardly meet. There JS is log 2 wherever they are, and D tells "
    "them apart without saying which way is nearer; W_1 says how far it is.",
    method="Arjovsky et al.'s parallel lines (2017, arXiv 1701.07875, Example 1). JS and W_1 of clouds of 1,000 points, "
    "the latter by the best assignment; the lecture's D (the family gan) and the critic of wgan_gp, λ = 20, both by "
    "the production loop, against lines that stand still; and one number θ learned by both games, the critic's with "
    "λ = 1.",
    measure=measure,
    draw=draw,
)
