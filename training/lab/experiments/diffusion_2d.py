"""Denoising in many small steps on data for which the quantities that the network learns are known in closed form.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)                                        (Ho et al. 2020, equation 4)
    E[x_0 | x_t] = (x_t + sigma_t^2 grad log p_t(x_t)) / alpha_t                      (Tweedie; Efron 2011)

Noise turns a mixture of Gaussians into another with centres alpha_t c and deviation sqrt(alpha_t^2 s^2 + sigma_t^2).
So the score grad log p_t and the best estimate of x_0 have a closed form. Running the chain with the closed form in
place of the network separates the error of few steps from the error of the network.
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
"""Points per set for W_2."""
FOLLOWED = 128
"""Samples that are compared with their 1,000-step result."""
STEPS = (5, 10, 20, 50)
SAMPLERS = {"ddpm": ("ddpm", "ddim", "dpm++2m"), "flow": ("euler", "heun")}
DETERMINISTIC = {"ddim": 1, "dpm++2m": 2}
"""The samplers that add no noise, and the order of their error."""
TIMES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Times of the forward chain, as fractions of T."""
SETTLED = 0.2
"""At earlier times the noise is below the smallest sigma that the family's loss distinguishes."""
FIELD_TIME = 0.1
FRAMES = 25
SHOWN = 500


class Truth(nn.Module):
    """E[x_0 | x_t] in closed form, in place of DDPM's network."""

    def __init__(self, family: DDPM) -> None:
        super().__init__()
        self.family = (family,)  # in a tuple, so that the two modules do not contain each other

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        (time,) = time.unique()  # the same in every row
        (family,) = self.family
        alpha, sigma = scales(family, float(time))
        return (x + sigma**2 * score(noisy(alpha, sigma), x)) / alpha


def scales(family: DDPM, time: float) -> tuple[float, float]:
    """alpha and sigma at a time in (0, 1]."""
    abar = float(family.alphas_cumprod[round(time * family.config.timesteps) - 1])
    return abar**0.5, (1 - abar) ** 0.5


def noisy(alpha: float, sigma: float) -> Gaussians:
    """p_t: TARGET after scaling by alpha and adding noise of deviation sigma."""
    return Gaussians(alpha * TARGET.centres, ((alpha * TARGET.deviation) ** 2 + sigma**2) ** 0.5)


def score(shape: Gaussians, x: Tensor) -> Tensor:
    """grad log p of x [N, 2]: [N, 2]."""
    share = (-torch.cdist(x, shape.centres).square() / (2 * shape.deviation**2)).softmax(1)
    return (share @ shape.centres - x) / shape.deviation**2


def learned_score(family: DDPM, x: Tensor, time: float) -> Tensor:
    """The score at x [N, 2] that follows from the network's estimate of x_0: [N, 2]."""
    alpha, sigma = scales(family, time)
    estimate = family.unet(x, torch.full((len(x),), time), torch.zeros(len(x), 0))
    return (alpha * estimate - x) / sigma**2


def measure(setting: Setting) -> Findings:
    """Add noise to the data, train both families, and compare their scores and samples with the truth."""
    cloud = QUICK_CLOUD if setting.quick else CLOUD
    dataset = points(TARGET.sample(POINTS, setting.seed))
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
            numbers.append(near(f"variance of x_t at t = {time} T", float(x.square().mean()), theory, 0.03,
                                "alpha² Var x_0 + sigma²"))  # fmt: skip
        for time, x in forward.items():
            best = score(noisy(*scales(ddpm, time)), x)
            error = float((learned_score(ddpm, x, time) - best).square().sum() / best.square().sum())
            what, source = f"score at t = {time} T: squared error / squared norm", "closed form"
            numbers.append(at_most(what, error, 0.05, source) if time >= SETTLED else reported(what, error, source))
        baseline = data_distance(cloud, setting.seed)
    numbers.append(reported("W_2 between two sets of data points", baseline, f"baseline: {cloud:,} points each"))
    families: dict[str, Family] = {"ddpm": ddpm, "flow": fit(Flow, FlowConfig(), dataset, recipe, setting.seed)}
    table = {(name, sampler, steps): quality(families[name], cloud, steps, sampler)
             for name, samplers in SAMPLERS.items() for sampler in samplers for steps in STEPS}  # fmt: skip
    traces = {name: trace(family, 50, SAMPLERS[name][-1]) for name, family in families.items()}
    field = field_of(ddpm)
    ddpm.unet = Truth(ddpm)  # type: ignore[assignment]
    table |= {("truth", sampler, steps): quality(ddpm, cloud, steps, sampler)
              for sampler in SAMPLERS["ddpm"] for steps in STEPS}  # fmt: skip
    drift = {(sampler, steps): sample_error(ddpm, steps, sampler) for sampler in DETERMINISTIC for steps in STEPS}
    numbers += numbers_of(table, drift, baseline)
    plot_data = {
        "forward": {time: x[:SHOWN].half() for time, x in forward.items()},
        "traces": {name: path.half() for name, path in traces.items()},
        "field": field, "table": table, "drift": drift, "baseline": baseline,
    }  # fmt: skip
    return Findings(tuple(numbers), plot_data)


def numbers_of(
    table: dict[tuple[str, str, int], float], drift: dict[tuple[str, int], float], baseline: float
) -> list[Number]:
    """The distances of every sampler at every number of steps, with bounds at 50 steps."""
    numbers = []
    for (model, sampler, steps), distance in table.items():
        what = f"{'true score' if model == 'truth' else model}, {sampler}, {steps} steps: W_2 to the data"
        if steps < STEPS[-1]:
            numbers.append(reported(what, distance))
        else:
            factor = 1.5 if model == "truth" else 2.0
            numbers.append(at_most(what, distance, factor * baseline, f"{factor:g} times the baseline"))
    for (sampler, steps), distance in drift.items():
        numbers.append(reported(f"true score, {sampler}, {steps} steps: distance of a sample to its 1,000-step result",
                                distance, "median"))  # fmt: skip
    few, many = STEPS[1], STEPS[-1]
    for sampler, order in DETERMINISTIC.items():
        measured = math.log(drift[sampler, few] / drift[sampler, many]) / math.log(many / few)
        numbers.append(at_least(f"{sampler}: order of the error, from {few} and {many} steps", measured, order - 0.25,
                                f"a method of order {order}: error ~ steps^-{order}"))  # fmt: skip
    return numbers


def spread(family: DDPM, x: Tensor, time: float, seed: int) -> Tensor:
    """x_t of data x [N, 2]."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    t = torch.full((len(x),), round(time * family.config.timesteps) - 1)
    return family.diffuse(x, t, eps)


def data_distance(count: int, seed: int) -> float:
    """W_2 between two sets of `count` data points, the mean of five pairs."""
    pairs = [wasserstein2(*(TARGET.sample(count, 9000 + 100 * seed + 2 * k + i) for i in (0, 1))) for k in range(5)]
    return sum(pairs) / len(pairs)


def quality(family: Family, count: int, steps: int, sampler: str) -> float:
    """W_2 between the family's samples and the data, the mean over three sets of data points."""
    generated = samples(family, count, steps=steps, sampler=sampler)
    return sum(wasserstein2(generated, TARGET.sample(count, 8000 + k)) for k in range(3)) / 3


def sample_error(family: Family, steps: int, sampler: str) -> float:
    """The median distance of samples to the result of the same noise with the maximal number of steps."""
    few, many = (samples(family, FOLLOWED, steps=count, sampler=sampler) for count in (steps, family.steps.maximum))
    return float((few - many).norm(dim=1).median())


@torch.inference_mode()
def trace(family: Family, steps: int, sampler: str) -> Tensor:
    """The states of SHOWN samples before the first step and after each: [steps + 1, SHOWN, 2]."""
    schedule = family.schedule(steps, sampler)
    index = torch.arange(SHOWN)
    seed, label = torch.zeros_like(index), torch.zeros(SHOWN, 0)
    state = family.initial_state(seed, index, label, schedule[:1].expand(SHOWN, -1))
    path = [state]
    for k, coefficients in enumerate(schedule.unsqueeze(1).expand(-1, SHOWN, -1), start=1):
        state = family.step(Rows(state, label, coefficients, torch.ones(SHOWN), seed, index, torch.full_like(seed, k)))
        path.append(state)
    return torch.stack([state.chunk(2, dim=1)[0] for state in path])


@torch.inference_mode()
def field_of(family: DDPM) -> dict[str, Tensor]:
    """The learned and the true score on a lattice at FIELD_TIME."""
    x = lattice(21)
    shape = noisy(*scales(family, FIELD_TIME))
    return {"x": x, "learned": learned_score(family, x, FIELD_TIME), "truth": score(shape, x)}


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw both chains, the score, the error of few steps, and the animation from noise to data."""
    first = findings[0].plot_data
    return [_chains(first), _field(first["field"]), _steps(findings), _film(first["traces"])]


def _cloud(panel: Any, x: Tensor, color: str, title: str, reach: float = 2.2) -> None:
    panel.scatter(*x.float().T, s=5, color=color, alpha=0.7, linewidths=0)
    plots.plane(panel, title, reach)
    panel.set(xlabel="", ylabel="")


def _chains(plot_data: Any) -> Picture:
    fig, axes = plots.figure(2, len(TIMES), width=2.7, height=2.9)
    path = plot_data["traces"]["ddpm"]
    for column, time in enumerate(TIMES):
        _cloud(axes[0, column], plot_data["forward"][time], plots.DATA, f"t = {time:g} T")
        # The schedule's times are denser towards the image: step k is at (1 - k / steps)^1.5.
        k = round((1 - time ** (1 / 1.5)) * (len(path) - 1))
        _cloud(axes[1, column], path[k], plots.GENERATED, "")
    axes[0, 0].set(ylabel="noise added →")
    axes[1, 0].set(ylabel="← noise removed")
    return Picture(
        "diffusion_2d_chains.png",
        "Top: data with increasing noise. Bottom, from right to left: samples at the same times, as the learned chain "
        "removes the noise of N(0, I).",
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
        f"The score at t = {FIELD_TIME:g} T points to where the noisy data is denser.",
        plots.png(fig),
    )


def _steps(findings: Sequence[Findings]) -> Picture:
    fig, axes = plots.figure(1, 4, width=4.3, height=4.3)
    titles = {"ddpm": "DDPM, learned", "truth": "DDPM, true score", "flow": "Flow, learned"}
    baseline = findings[0].plot_data["baseline"]
    names = sorted({sampler for samplers in SAMPLERS.values() for sampler in samplers})
    colors = dict(zip(names, plots.CYCLE, strict=False))
    *panels, last = axes[0]
    for panel, (model, title) in zip(panels, titles.items(), strict=True):
        for sampler in SAMPLERS["flow" if model == "flow" else "ddpm"]:
            distances = [
                sum(run.plot_data["table"][model, sampler, steps] for run in findings) / len(findings)
                for steps in STEPS
            ]
            panel.plot(STEPS, distances, "o-", color=colors[sampler], label=sampler)
        panel.axhline(baseline, color=plots.BLACK, linewidth=1.2, linestyle="--", label="two sets of data")
        panel.set(title=title, ylim=(0, 2 * baseline))
    for sampler in DETERMINISTIC:
        distances = [sum(run.plot_data["drift"][sampler, steps] for run in findings) / len(findings) for steps in STEPS]
        last.plot(STEPS, distances, "o-", color=colors[sampler], label=sampler)
    last.set(title="True score, per sample", ylabel="median distance to 1,000 steps", yscale="log")
    for panel in axes[0]:
        panel.set(xlabel="steps", xscale="log")
        panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
        panel.xaxis.minorticks_off()
        panel.legend()
    axes[0, 0].set(ylabel="W₂ to the data")
    return Picture(
        "diffusion_2d_steps.png",
        "The error of few steps. W₂ is between 1,000 samples and 1,000 data points. The dashed line is W₂ between two "
        "sets of data points, which fall unevenly on the 8 Gaussians. With the true score in place of the network only "
        "the steps cause an error; the right panel shows it per sample.",
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
        "The same noise becomes data in 50 steps: DDPM by dpm++2m, flow by Heun's method.",
        plots.animation(FRAMES, frame),
    )


EXPERIMENT = Experiment(
    title="Diffusion, step by step",
    claim="A chain of small steps turns data into noise. Its reverse also consists of small Gaussian steps, and is "
    "learned by predicting the data from the noisy data.",
    method="The families ddpm and flow on a ring of 8 Gaussians, whose score is known at every noise level; all "
    "samplers at 5, 10, 20 and 50 steps, with W_2 by optimal assignment; and DDPM's samplers with the true score in "
    "place of the network (ddim: Song et al. 2021, arXiv 2010.02502; dpm++2m: Lu et al. 2022, arXiv 2211.01095).",
    measure=measure,
    draw=draw,
)
