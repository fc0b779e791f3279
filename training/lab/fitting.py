"""Trains the production families on points with the production trainer, without files."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.base import Family, Recipe
from training import data
from training.data import Dataset
from training.lab.experiment import Setting
from training.loop import Hardware, Trainer
from training.samples import fixed_samples

CPU = Hardware(torch.device("cpu"))


def points(x: Tensor, label: Tensor | None = None) -> Dataset:
    """A data set of points x [N, D] float32 in [-1, 1], with label [N] int64 or none."""
    names = () if label is None else tuple(str(k) for k in range(int(label.max()) + 1))
    return data.make("points", x, torch.full((len(x),), -1) if label is None else label, names)


def load_digits(setting: Setting, split: data.Split) -> Dataset:
    """The setting's data set of digits, of 28x28 pixels in grey."""
    return data.load(setting.data, setting.data_root, split, data.Options(size=(28, 28), channels=1))


Kind = Callable[[Any, tuple[int, ...], int], Family]
"""Builds a family from its config, data shape and number of classes; a family's class is one."""


def fit(
    kind: Kind,
    config: Any,
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    watch: Callable[[Trainer], None] | None = None,
) -> Family:
    """A family of `kind` trained on `dataset` by `recipe`, ready to sample from: the averaged weights.

    `watch` is called with the trainer before the first iteration and after each.
    """
    trainer = make_trainer(kind, config, dataset, recipe, seed)
    while True:
        if watch is not None:
            watch(trainer)
        if trainer.images >= trainer.total_images:
            break
        trainer.train_step()
    trainer.fit()
    return trainer.average


def make_trainer(kind: Kind, config: Any, dataset: Dataset, recipe: Recipe, seed: int) -> Trainer:
    """The trainer of a family of `kind`, before the first iteration."""
    torch.manual_seed(seed)
    family = kind(config, tuple(dataset.images.shape[1:]), len(dataset.classes))
    return Trainer(family, recipe, dataset, CPU, seed=seed)


def iterations(count: int, batch: int, dataset: Dataset, steps: int = 1) -> float:
    """The `epochs` of a recipe of `count` iterations.

    `steps` is the number of batches per iteration: the steps of the player that comes first in `update_order`.
    """
    return count * batch * steps / len(dataset.images)


def samples(family: Family, count: int, **options: Any) -> Tensor:
    """`count` samples [count, *data_shape] of seed 0; `options` as for `models.base.sample`."""
    return fixed_samples(family, torch.device("cpu"), count, **options)
