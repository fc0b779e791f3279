"""Families on points: the production families and the production trainer, without a run on disk."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.base import Family, Recipe
from training import data
from training.data import Dataset
from training.loop import Hardware, Trainer
from training.samples import fixed_samples

CPU = Hardware(torch.device("cpu"))


def points(x: Tensor, label: Tensor | None = None) -> Dataset:
    """The data set of points x [N, D] float32 in [-1, 1], with label [N] int64 or none."""
    names = () if label is None else tuple(str(k) for k in range(int(label.max()) + 1))
    return data.make("points", x, torch.full((len(x),), -1) if label is None else label, names)


Kind = Callable[[Any, tuple[int, ...], int], Family]
"""A family's class, or what makes one of its config, data shape and classes."""


def fit(
    kind: Kind,
    config: Any,
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    watch: Callable[[Trainer], None] | None = None,
) -> Family:
    """A family of `kind` trained on `dataset` by `recipe`, ready to draw from: its averaged weights.

    `watch` sees the trainer before the first iteration and after each.
    """
    trainer = begin(kind, config, dataset, recipe, seed)
    while True:
        if watch is not None:
            watch(trainer)
        if trainer.images >= trainer.total_images:
            break
        trainer.train_step()
    trainer.fit()
    return trainer.average


def begin(kind: Kind, config: Any, dataset: Dataset, recipe: Recipe, seed: int) -> Trainer:
    """The trainer of a family of `kind`, before its first iteration."""
    torch.manual_seed(seed)
    family = kind(config, tuple(dataset.images.shape[1:]), len(dataset.classes))
    return Trainer(family, recipe, dataset, CPU, seed=seed)


def iterations(count: int, batch: int, dataset: Dataset, moves: int = 1) -> float:
    """The `epochs` of a recipe in which `count` iterations take place.

    `moves` is how often one draws a fresh batch: as often as the player that moves first does.
    """
    return count * batch * moves / len(dataset.images)


def samples(family: Family, count: int, **asked: Any) -> Tensor:
    """`count` draws [count, *data_shape] of seed 0; `asked` as for `models.base.draw`."""
    return fixed_samples(family, torch.device("cpu"), count, **asked)
