"""The data and the judge that weights are measured with."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from models.store import Manifest
from training import classifier, data
from training.classifier import Classifier
from training.config import ConfigError
from training.data import DataError, Dataset
from training.export import READING
from training.figures import MNIST, short_name

MIN_TEST_IMAGES = 10
NO_JUDGE = "none"
"""The value of `--judge` that measures without one."""


def load_data(name: str, manifest: Manifest, given: str | None, root: Path | None) -> tuple[Dataset, Dataset]:
    """The training and test images of weights `name`, as `load_splits` finds them, in the order of `comparable`."""
    return comparable(*load_splits(name, manifest, given, root))


def load_splits(name: str, manifest: Manifest, given: str | None, root: Path | None) -> tuple[Dataset, Dataset]:
    """The training and test images of weights `name`, from the path `given` or where they were in training.

    Raises ConfigError if they are not the images of the manifest.
    """
    path, options = given or manifest.dataset["name"], _reading(manifest)
    try:
        train, test = (data.load(path, root, split, options) for split in ("train", "test"))
    except DataError as error:
        advice = "" if given else f"; --data names the data of {name}"
        raise ConfigError(f"{error}{advice}") from None
    if train.digest != manifest.dataset.get("digest"):
        raise ConfigError(f"{path} holds other images than {name} was trained on; name those with --data")
    if len(test.images) < MIN_TEST_IMAGES:
        raise ConfigError(f"{path} has {len(test.images)} test images; evaluation needs {MIN_TEST_IMAGES}")
    return train, test


def comparable(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """The splits in an order in which the first images stand for all.

    Those of other data than MNIST are shuffled, because folders have them by class.
    """
    return (train, test) if train.digest == MNIST else (_shuffled(train), _shuffled(test))


def find_judge(args: argparse.Namespace, options: dict[str, Any], train: Dataset) -> Classifier | None:
    """The judge that `--judge` names, or the data's own; None for data without labels, and with `--judge none`.

    Raises ConfigError if labelled data has none, unless Inception stands in for it.
    """
    wanted = args.judge or ("select" if options else "report")
    if wanted == NO_JUDGE:
        return None
    channels, height, width = train.images.shape[1:]
    if wanted not in classifier.NAMES:
        judge = classifier.read(Path(wanted))
        if judge.data.shape != (channels, height, width):
            shape = "x".join(map(str, judge.data.shape))
            raise ConfigError(f"--judge {wanted}: it judges images of {shape}, not of {channels}x{height}x{width}")
        return judge
    found = classifier.find(wanted, train.digest, args.judges)
    if found is None and len(train.labels.unique()) > 1 and not args.inception:
        raise ConfigError(
            f"no judge {wanted!r} for {short_name(train.name)}; train it with `drawbridge judge --data "
            f"{args.data or train.name} --size {height}x{width} --channels {channels}`, name another by --judge PATH, "
            f"or measure without one by --judge {NO_JUDGE}"
        )
    return classifier.read(found) if found else None


def _reading(manifest: Manifest) -> data.Options:
    """How the images of the weights' data are read."""
    channels, *size = manifest.data_shape
    reading = {key: manifest.dataset[key] for key in READING if key in manifest.dataset}
    return data.Options.from_json({**reading, "size": size, "channels": channels})


def _shuffled(dataset: Dataset) -> Dataset:
    """The same images in another, fixed order; the digest stays that of the data."""
    order = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(dataset, images=dataset.images[order], labels=dataset.labels[order])
