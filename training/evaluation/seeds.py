"""Figures of several seeds: their mean and interval, and whether they contradict published ones."""

import math
from typing import Any

import torch

from training import metrics
from training.figures import OF_WEIGHTS


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over one run per seed; of several, `interval` has half of each 95 % interval."""
    columns = {key: torch.tensor([run[key] for run in runs], dtype=torch.float64) for key in runs[0]}
    means: dict[str, Any] = {key: values.mean(0).tolist() for key, values in columns.items()}
    if len(runs) > 1:
        means["interval"] = {key: metrics.interval(v.tolist()) for key, v in columns.items() if v.dim() == 1}
    return means


def contradictions(figures: dict[str, Any], published: dict[str, Any]) -> dict[str, float]:
    """The published values of the figures that differ from `published` by more than chance.

    Figures of samples may differ by half the 95 % interval, by more with other seeds than the published ones; figures
    of the weights themselves by one thousandth.
    """
    factor = 1.0
    if figures["seeds"] != published["seeds"]:
        factor = math.sqrt(1 + len(published["seeds"]) / len(figures["seeds"]))
    # Devices round differently, and a pixel may be off by one grey level: hence the thousandth.
    slack = {name: factor * half + 1e-3 * abs(published[name]) for name, half in published["interval"].items()}
    slack |= {name: 1e-3 * abs(published[name]) for name in OF_WEIGHTS if name in published}
    return {
        name: published[name]
        for name, limit in slack.items()
        if name in figures and abs(figures[name] - published[name]) > limit
    }
