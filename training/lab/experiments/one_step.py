"""One step in place of many: the average velocity of a flow beside the flow itself.

    x_e = x_s + (e - s) u(x_s, s, e)                                                  (Geng et al. 2025, equation 12)

Flow takes steps along its velocity, and one step of it leads all noise to the mean of the data. The average velocity
leads it to where the path ends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.base import Family, Recipe
from models.families.flow import Flow, FlowConfig
from models.families.meanflow import PATH_STEPS, MeanFlow, MeanFlowConfig
from training.lab import plots
from training.lab.distances import wasserstein2
from training.lab.experiment import Experiment, Findings, Number, Picture, Setting, at_least, at_most, reported
from training.lab.fitting import fit, iterations, points, samples
from training.lab.shapes import ring

TARGET = ring(8, 0.65, 0.05)
POINTS = 50_000
BATCH = 256
CLOUD, QUICK_CLOUD = 1000, 400
"""Points per set for W_2."""
STEPS = (1, 2, 4, 8)
SHOWN = 500
KINDS: dict[str, tuple[type[Family], Any]] = {
    "flow": (Flow, FlowConfig()),
    "meanflow": (MeanFlow, MeanFlowConfig(guidance=1.0)),
}


def measure(setting: Setting) -> Findings:
    """Train both families on the same points, and compare their samples at few steps with the data."""
    cloud = QUICK_CLOUD if setting.quick else CLOUD
    dataset = points(TARGET.sample(POINTS, setting.seed))
    epochs = iterations(1000 if setting.quick else 4000, BATCH, dataset)
    recipe = Recipe(epochs, BATCH, 3e-3, ema=40 * BATCH, cosine=True)
    clouds: dict[tuple[str, int], Tensor] = {}
    distances: dict[tuple[str, int], float] = {}
    for name, (kind, config) in KINDS.items():
        family = fit(kind, config, dataset, recipe, setting.seed)
        clouds |= {(name, steps): drawn(family, cloud, steps) for steps in STEPS}
    for key, x in clouds.items():
        distances[key] = sum(wasserstein2(x, TARGET.sample(cloud, 8000 + k)) for k in range(3)) / 3
    baseline = sum(
        wasserstein2(*(TARGET.sample(cloud, 9000 + 100 * setting.seed + 2 * k + i) for i in (0, 1))) for k in range(3)
    ) / 3  # fmt: skip
    path = distances["flow", PATH_STEPS - 1]
    numbers: list[Number] = [reported("W_2 between two sets of data points", baseline, f"{cloud:,} points each")]
    numbers += [
        reported(f"{name}, {steps} step{'s' if steps > 1 else ''}: W_2 to the data", distance)
        for (name, steps), distance in distances.items()
        if (name, steps) not in (("flow", 1), ("meanflow", 1))
    ]
    numbers += [
        at_least("flow, 1 step: W_2 to the data", distances["flow", 1], 0.5,
                 "all noise goes to the mean, 0.65 from the data"),
        at_most("meanflow, 1 step: W_2 to the data", distances["meanflow", 1], 1.5 * path,
                f"1.5 times that of flow in {PATH_STEPS - 1} steps of Euler's method"),
    ]  # fmt: skip
    return Findings(
        tuple(numbers),
        {
            "clouds": {key: x[:SHOWN].half() for key, x in clouds.items()},
            "distances": distances,
            "baseline": baseline,
        },
    )


def drawn(family: Family, count: int, steps: int) -> Tensor:
    """`count` samples [count, 2] in this many steps of equal length, of Euler's method for flow."""
    options = {"sampler": "euler"} if family.samplers else {}
    with torch.inference_mode():
        return samples(family, count, steps=steps, **options)


def draw(findings: Sequence[Findings]) -> list[Picture]:
    """Draw the samples of both families at few steps, and their distances."""
    first = findings[0].plot_data
    fig, axes = plots.figure(len(KINDS), len(STEPS), width=2.6, height=2.8)
    for row, name in enumerate(KINDS):
        for column, steps in enumerate(STEPS):
            panel = axes[row, column]
            panel.scatter(*first["clouds"][name, steps].float().T, s=5, color=plots.GENERATED, alpha=0.7, linewidths=0)
            plots.plane(panel, f"{name}, {steps} step{'s' if steps > 1 else ''}", 1.05)
            panel.set(xlabel="", ylabel="")
    clouds = Picture(
        "one_step.png",
        "Samples of the same noise. One step of flow leads all of it to the mean; one step of MeanFlow leads it to the "
        "ring.",
        plots.png(fig),
    )
    fig, panel = plots.figure(width=5.6, height=4.3)
    for name in KINDS:
        means = [sum(run.plot_data["distances"][name, steps] for run in findings) / len(findings) for steps in STEPS]
        panel.plot(STEPS, means, "o-", label=name)
    panel.axhline(first["baseline"], color=plots.BLACK, linewidth=1.2, linestyle="--", label="two sets of data")
    panel.set(xlabel="steps", ylabel="W₂ to the data", xscale="log", ylim=(0, None))
    panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
    panel.xaxis.minorticks_off()
    panel.legend()
    steps_picture = Picture("one_step_distance.png", "The error of few steps, one call of a net each.", plots.png(fig))
    return [clouds, steps_picture]


EXPERIMENT = Experiment(
    title="One step",
    claim="The average velocity of a flow takes noise to data in one step, where the velocity itself takes many.",
    method="The families flow, by Euler's method, and meanflow on a ring of 8 Gaussians, with as many updates, at 1 to "
    "8 steps of equal length, with W_2 by optimal assignment.",
    measure=measure,
    draw=draw,
)
