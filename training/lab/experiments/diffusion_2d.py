"""Denoising as many small steps, where every quantity that the net stands for is known.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)                                        (Ho et al. 2020, equation 4)
    E[x_0 | x_t] = (x_t + sigma_t^2 grad log p_t(x_t)) / alpha_t                      (Tweedie; Efron 2011)

Noise turns a mixture of Gaussians into another, of centres alpha_t c and deviation sqrt(alpha_t^2 s^2 + sigma_t^2).
So the score grad log p_t and the best guess of x_0 have a closed form: what a net has learned can be told from what
few steps do to it, by walking the same chain with the truth in the net's place.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Family, Recipe, Rows
from models.families.ddpm import DDPM, DDPMConfig
from models.families.flow import Flow, FlowConfig
from training.lab import plots
from training.lab.distances import lattice, wasserstein2
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_least, at_most, near, reported
from training.lab.fitting import fit, iterations, points, samples
from training.lab.shapes import Gaussians, ring

TARGET = ring(8, 0.65, 0.05)
POINTS = 50_000
BATCH = 256
CLOUD, QUICK_CLOUD = 1000, 400
"""Points of each cloud whose W_2 is taken."""
FOLLOWED = 128
"""Draws whose place is looked for."""
STEPS = (5, 10, 20, 50)
SAMPLERS = {"ddpm": ("ddpm", "ddim", "dpm++2m"), "flow": ("euler", "heun")}
DETERMINISTIC = {"ddim": 1, "dpm++2m": 2}
"""Those that add no noise, and the order of their error."""
TIMES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Parts of the forward chain that are looked at."""
SETTLED = 0.2
"""Earlier, noise is finer than the least sigma that the family's loss knows."""
FIELD_TIME = 0.1
FRAMES = 25
SHOWN = 500


class Truth(nn.Module):
    """E[x_0 | x_t] in the place of DDPM's net."""

    def __init__(self, family: DDPM) -> None:
        super().__init__()
        self.family = (family,)  # in a tuple, for a module of its own net would never end

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        (time,) = time.unique()  # every row's
        (family,) = self.family
        alpha, sigma = scales(family, float(time))
        return (x + sigma**2 * score(noisy(alpha, sigma), x)) / alpha


def scales(family: DDPM, time: float) -> tuple[float, float]:
    """alpha and sigma at a time in (0, 1]."""
    abar = float(family.alphas_cumprod[round(time * family.config.timesteps) - 1])
    return abar**0.5, (1 - abar) ** 0.5


def noisy(alpha: float, sigma: float) -> Gaussians:
    """p_t, what TARGET becomes."""
    return Gaussians(alpha * TARGET.centres, ((alpha * TARGET.deviation) ** 2 + sigma**2) ** 0.5)


def score(shape: Gaussians, x: Tensor) -> Tensor:
    """grad log p of x [N, 2]: [N, 2]."""
    share = (-torch.cdist(x, shape.centres).square() / (2 * shape.deviation**2)).softmax(1)
    return (share @ shape.centres - x) / shape.deviation**2


def learned_score(family: DDPM, x: Tensor, time: float) -> Tensor:
    """What the net's guess of x_0 says of the same."""
    alpha, sigma = scales(family, time)
    guess = family.unet(x, torch.full((len(x),), time), torch.zeros(len(x), 0))
    return (alpha * guess - x) / sigma**2


def measure(setting: Setting) -> Findings:
    """Noise the data, train both families, hold their fields and draws against the truth."""
    cloud = QUICK_CLOUD if setting.quick else CLOUD
    dataset = points(TARGET.draw(POINTS, setting.seed))
    recipe = Recipe(
        iterations(1500 if setting.quick else 8000, BATCH, dataset), BATCH, 3e-3, ema=40 * BATCH, cosine=True
    )
    ddpm = fit(DDPM, DDPMConfig(), dataset, recipe, setting.seed)
    assert isinstance(ddpm, DDPM)
    numbers: list[Number] = []
    with torch.inference_mode():
        forward = {time: spread(ddpm, dataset.images[:20_000], time, setting.seed) for time in TIMES}
        for time, x in forward.items():
            alpha, sigma = scales(ddpm, time)
            theory = alpha**2 * (0.65**2 / 2 + TARGET.deviation**2) + sigma**2
            numbers.append(near(f"variance of x_t at {time} of the chain", float(x.square().mean()), theory, 0.03,
                                "alpha² Var x_0 + sigma²"))  # fmt: skip
        for time, x in forward.items():
            best = score(noisy(*scales(ddpm, time)), x)
            off = float((learned_score(ddpm, x, time) - best).square().sum() / best.square().sum())
            what, source = f"squared error of the score at {time} of the chain, of its square", "in closed form"
            numbers.append(at_most(what, off, 0.05, source) if time >= SETTLED else reported(what, off, source))
        floor = floors(cloud, setting.seed)
    numbers.append(reported("W_2 of two clouds of data", floor, f"the floor: {cloud:,} points each"))
    families: dict[str, Family] = {"ddpm": ddpm, "flow": fit(Flow, FlowConfig(), dataset, recipe, setting.seed)}
    table = {(name, sampler, steps): quality(families[name], cloud, steps, sampler)
             for name, samplers in SAMPLERS.items() for sampler in samplers for steps in STEPS}  # fmt: skip
    traces = {name: trace(family, 50, SAMPLERS[name][-1]) for name, family in families.items()}
    field = field_of(ddpm)
    ddpm.unet = Truth(ddpm)  # type: ignore[assignment]
    table |= {("truth", sampler, steps): quality(ddpm, cloud, steps, sampler)
              for sampler in SAMPLERS["ddpm"] for steps in STEPS}  # fmt: skip
    drift = {(sampler, steps): astray(ddpm, steps, sampler) for sampler in DETERMINISTIC for steps in STEPS}
    numbers += judged(table, drift, floor)
    shown = {
        "forward": {time: x[:SHOWN].half() for time, x in forward.items()},
        "traces": {name: path.half() for name, path in traces.items()},
        "field": field, "table": table, "drift": drift, "floor": floor,
    }  # fmt: skip
    return Findings(tuple(numbers), shown)


def judged(table: dict[tuple[str, str, int], float], drift: dict[tuple[str, int], float], floor: float) -> list[Number]:
    """Every sampler at every number of steps; bounds where 50 are enough."""
    numbers = []
    for (who, sampler, steps), distance in table.items():
        what = f"{'true score' if who == 'truth' else who}, {sampler}, {steps} steps: W_2 to the data"
        if steps < STEPS[-1]:
            numbers.append(reported(what, distance))
        else:
            times = 1.5 if who == "truth" else 2.0
            numbers.append(at_most(what, distance, times * floor, f"{times:g} times the floor"))
    for (sampler, steps), distance in drift.items():
        numbers.append(reported(f"true score, {sampler}, {steps} steps: how far a draw is from its place", distance,
                                "median; its place is where 1,000 steps end"))  # fmt: skip
    few, many = STEPS[1], STEPS[-1]
    for sampler, order in DETERMINISTIC.items():
        found = math.log(drift[sampler, few] / drift[sampler, many]) / math.log(many / few)
        numbers.append(at_least(f"{sampler}: order of its error, by {few} and {many} steps", found, order - 0.25,
                                f"a method of order {order}: error ~ steps^-{order}"))  # fmt: skip
    return numbers


def spread(family: DDPM, x: Tensor, time: float, seed: int) -> Tensor:
    """x_t of data x [N, 2]."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    t = torch.full((len(x),), round(time * family.config.timesteps) - 1)
    return family.diffuse(x, t, eps)


def floors(count: int, seed: int) -> float:
    """W_2 of two clouds of the data, the mean of five pairs."""
    pairs = [wasserstein2(*(TARGET.draw(count, 9000 + 100 * seed + 2 * k + i) for i in (0, 1))) for k in range(5)]
    return sum(pairs) / len(pairs)


def quality(family: Family, count: int, steps: int, sampler: str) -> float:
    """W_2 of the family's draws to the data, the mean over three clouds of it."""
    drawn = samples(family, count, steps=steps, sampler=sampler)
    return sum(wasserstein2(drawn, TARGET.draw(count, 8000 + k)) for k in range(3)) / 3


def astray(family: Family, steps: int, sampler: str) -> float:
    """The median distance of draws to those of the same noise in as many steps as there are."""
    drawn, place = (samples(family, FOLLOWED, steps=count, sampler=sampler) for count in (steps, family.steps.maximum))
    return float((drawn - place).norm(dim=1).median())


@torch.inference_mode()
def trace(family: Family, steps: int, sampler: str) -> Tensor:
    """Where SHOWN draws are before the first link and after each: [steps + 1, SHOWN, 2]."""
    plan = family.schedule(steps, sampler)
    index = torch.arange(SHOWN)
    seed, label = torch.zeros_like(index), torch.zeros(SHOWN, 0)
    state = family.initial_state(seed, index, label, plan[:1].expand(SHOWN, -1))
    path = [state]
    for k, link in enumerate(plan, start=1):
        line = link.expand(SHOWN, -1)
        state = family.step(Rows(state, label, line, torch.ones(SHOWN), seed, index, torch.full_like(seed, k)))
        path.append(state)
    return torch.stack([state.chunk(2, dim=1)[0] for state in path])


@torch.inference_mode()
def field_of(family: DDPM) -> dict[str, Tensor]:
    """Both scores on a lattice, at FIELD_TIME."""
    x = lattice(21)
    shape = noisy(*scales(family, FIELD_TIME))
    return {"x": x, "learned": learned_score(family, x, FIELD_TIME), "truth": score(shape, x)}


def draw(found: Sequence[Findings]) -> list[Picture]:
    """Both chains, the field, what few steps cost, and the way from noise."""
    first = found[0].shown
    return [_chains(first), _field(first["field"]), _steps(found), _film(first["traces"])]


def _cloud(panel: Any, x: Tensor, color: str, title: str, reach: float = 2.2) -> None:
    panel.scatter(*x.float().T, s=5, color=color, alpha=0.7, linewidths=0)
    plots.plane(panel, title, reach)
    panel.set(xlabel="", ylabel="")


def _chains(shown: Any) -> Picture:
    fig, axes = plots.figure(2, len(TIMES), width=2.7, height=2.9)
    path = shown["traces"]["ddpm"]
    for column, time in enumerate(TIMES):
        _cloud(axes[0, column], shown["forward"][time], plots.DATA, f"t = {time:g} T")
        # Times of a plan lie denser towards the image: link k is at (1 - k / steps)^1.5.
        k = round((1 - time ** (1 / 1.5)) * (len(path) - 1))
        _cloud(axes[1, column], path[k], plots.GENERATED, "")
    axes[0, 0].set(ylabel="noise added →")
    axes[1, 0].set(ylabel="← noise removed")
    return Picture(
        "diffusion_2d_chains.png",
        "Above, data as noise is added. Below, draws at the same times, from right to left: the learned chain walked "
        "back from N(0, I).",
        plots.png(fig),
    )


def _field(field: Any) -> Picture:
    fig, axes = plots.figure(1, 2, width=5.6, height=5.4)
    for panel, (key, title) in zip(axes[0], (("learned", "As learned"), ("truth", "In closed form")), strict=True):
        panel.quiver(*field["x"].T, *field[key].T, color=plots.BLUE, angles="xy", width=0.005)
        panel.scatter(*TARGET.centres.T, s=40, color=plots.ORANGE, zorder=3, label="centres of the data")
        plots.plane(panel, title, 1.05)
    axes[0, 0].legend(loc="lower left", framealpha=0.9, frameon=True)
    return Picture(
        "diffusion_2d_field.png",
        f"The score at {FIELD_TIME:g} of the chain: the way towards where noisy data is denser.",
        plots.png(fig),
    )


def _steps(found: Sequence[Findings]) -> Picture:
    fig, axes = plots.figure(1, 4, width=4.3, height=4.3)
    titles = {"ddpm": "DDPM, learned", "truth": "DDPM, true score", "flow": "Flow, learned"}
    floor = found[0].shown["floor"]
    names = sorted({sampler for samplers in SAMPLERS.values() for sampler in samplers})
    colors = dict(zip(names, plots.CYCLE, strict=False))
    *panels, last = axes[0]
    for panel, (who, title) in zip(panels, titles.items(), strict=True):
        for sampler in SAMPLERS["flow" if who == "flow" else "ddpm"]:
            distances = [sum(one.shown["table"][who, sampler, steps] for one in found) / len(found) for steps in STEPS]
            panel.plot(STEPS, distances, "o-", color=colors[sampler], label=sampler)
        panel.axhline(floor, color=plots.BLACK, linewidth=1.2, linestyle="--", label="two clouds of data")
        panel.set(title=title, ylim=(0, 2 * floor))
    for sampler in DETERMINISTIC:
        distances = [sum(one.shown["drift"][sampler, steps] for one in found) / len(found) for steps in STEPS]
        last.plot(STEPS, distances, "o-", color=colors[sampler], label=sampler)
    last.set(title="True score, draw by draw", ylabel="median distance to 1,000 steps", yscale="log")
    for panel in axes[0]:
        panel.set(xlabel="steps", xscale="log")
        panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
        panel.xaxis.minorticks_off()
        panel.legend()
    axes[0, 0].set(ylabel="W₂ to the data")
    return Picture(
        "diffusion_2d_steps.png",
        "What few steps cost. W₂ is that of 1,000 draws to 1,000 points of the data; two clouds of the data are as far "
        "apart as the dashed line says, for their points fall unevenly on the 8 Gaussians. Where the true score takes "
        "the net's place only the steps err, as is seen draw by draw.",
        plots.png(fig),
    )


def _film(traces: Any) -> Picture:
    titles = {"ddpm": "DDPM", "flow": "Flow"}

    def frame(k: int) -> Any:
        fig, axes = plots.figure(1, 2, width=3.0, height=3.2)
        for panel, (name, path) in zip(axes[0], traces.items(), strict=True):
            at = round(k / (FRAMES - 1) * (len(path) - 1))
            _cloud(panel, path[at], plots.GENERATED, f"{titles[name]}, step {at}")
        return fig

    return Picture(
        "diffusion_2d.webp",
        "The same noise on its way, in 50 steps: DDPM by dpm++2m, Flow by Heun's method.",
        plots.animation(FRAMES, frame),
    )


EXPERIMENT = Experiment(
    title="Diffusion, a step at a time",
    claim="A chain of small steps turns data into noise; its reverse, of small Gaussian steps too, is learned by "
    "guessing what was there before.",
    method="The families ddpm and flow on a ring of 8 Gaussians, whose score is known at every level of noise; all "
    "samplers at 5, 10, 20 and 50 steps, with W_2 by the best assignment; and DDPM's samplers with the truth in the "
    "net's place (ddim: Song et al. 2021, arXiv 2010.02502; dpm++2m: Lu et al. 2022, arXiv 2211.01095).",
    measure=measure,
    draw=draw,
)
