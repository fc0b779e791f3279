"""One run of the experiment: a small classifier, trained on real images, draws or both, and its test accuracy.

All runs take the same number of updates on batches of the same size, with the optimizer of the judges. Nothing is
chosen by test accuracy: no setting, and no checkpoint, since the last weights are tested.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from models.pixels import to_unit
from training import classifier, data
from training.classifier import CNN, Classifier, JudgedData
from training.data import Dataset, InfiniteSampler
from training.sources import SampleSet

WIDTH, BATCH, UPDATES = 8, 64, 1000


@dataclass(frozen=True)
class Kind:
    """What a classifier is trained on."""

    title: str
    real: bool
    draws: bool
    augmented: bool
    """Whether images are rotated, scaled, sheared and shifted, and in colour mirrored: `classifier.augmented`."""


KINDS = {
    "real": Kind("real images", real=True, draws=False, augmented=False),
    "real_augmented": Kind("real images, augmented", real=True, draws=False, augmented=True),
    "both": Kind("real images and draws", real=True, draws=True, augmented=False),
    "both_augmented": Kind("real images and draws, augmented", real=True, draws=True, augmented=True),
    "draws": Kind("draws alone", real=False, draws=True, augmented=False),
}


@dataclass(frozen=True)
class Run:
    """One classifier."""

    kind: str
    """A key of KINDS."""
    per_label: int | None
    """Real images of each label, all of a label that has fewer; None has all images."""
    seed: int
    """Decides which real images are used, the first weights and the batches."""
    updates: int = UPDATES


def labelled_draws(samples: SampleSet, classes: tuple[str, ...]) -> Dataset:
    """The draws as a data set, whose digest identifies them."""
    assert samples.requested_labels is not None
    return data.make("draws", samples.images, samples.requested_labels, classes)


def key(run: Run, train: Dataset, test: Dataset, draws: Dataset) -> str:
    """The name of a run's result: a digest of everything that decides it.

    Models of one data set share the results of runs that use no draws.
    """
    used = draws.digest if KINDS[run.kind].draws else ""
    recipe = [WIDTH, BATCH, classifier.LR, torch.__version__]
    identity = json.dumps([asdict(run), train.digest, test.digest, used, recipe])
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def train_and_test(run: Run, train: Dataset, test: Dataset, draws: Dataset) -> float:
    """Train the classifier of a run, and return its accuracy on the test images that have a label."""
    torch.manual_seed(run.seed)
    net = CNN(WIDTH, tuple(train.images.shape[1:]), len(train.classes)).to(memory_format=torch.channels_last)
    chosen = subset(train.labels, run.per_label, run.seed)
    real = SampleSet(train.images[chosen], train.labels[chosen])
    classifier.fit(net, batches(KINDS[run.kind], real, draws, run.seed), run.updates)
    trained = Classifier(run.kind, net, 0.0, "", JudgedData.of(train))
    return float(classifier.class_accuracies(trained, test)["test_accuracy"])


def subset(labels: Tensor, per_label: int | None, seed: int) -> Tensor:
    """Indices of `per_label` images of each label, or of all images that have a label.

    A seed's smaller subsets are parts of its larger ones.
    """
    if per_label is None:
        return (labels >= 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    places = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    return torch.cat([place[torch.randperm(len(place), generator=generator)[:per_label]] for place in places])


def batches(kind: Kind, real: SampleSet, draws: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of BATCH images in [-1, 1] and labels.

    Of real images and draws, each is half a batch. Draws have the labels of the real images of the batch, or, alone,
    of those that would be in it, so that labels are equally frequent in all kinds.
    """
    assert real.requested_labels is not None
    parts = kind.real + kind.draws
    by_label = draws.labels.argsort(stable=True)
    counts = draws.labels.bincount()
    firsts = counts.cumsum(0) - counts
    generator = torch.Generator().manual_seed(seed)
    for index in InfiniteSampler(len(real.images), BATCH // parts, seed):
        labels = real.requested_labels[index]
        images = [real.images[index]] if kind.real else []
        if kind.draws:
            offset = (torch.rand(len(labels), generator=generator) * counts[labels]).long()
            images.append(draws.images[by_label[firsts[labels] + offset]])
        x = to_unit(torch.cat(images))
        yield classifier.augmented(x) if kind.augmented else x, labels.repeat(parts)
