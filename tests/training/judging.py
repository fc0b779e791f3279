"""Small data sets and briefly trained judges for the tests of evaluation."""

from pathlib import Path

import torch

from training import classifier, data
from training.classifier import Classifier, JudgedData
from training.data import Dataset

COLOURS = ("red", "green", "blue")


def digits() -> tuple[Dataset, Dataset]:
    """The training and test split of scikit-learn's digits at 28x28."""
    train, test = (data.load("digits", None, split, data.Options(size=(28, 28))) for split in ("train", "test"))
    return train, test


def shapes(count: int, seed: int, height: int = 12, width: int = 16) -> Dataset:
    """Pictures [count, 3, H, W] of a square of the label's colour on white, at a random place, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(COLOURS)
    images = torch.full((count, 3, height, width), 230.0)
    for i, label in enumerate(labels.tolist()):
        top, left = (int(torch.randint(size - 5, (1,), generator=generator)) for size in (height, width))
        images[i, :, top : top + 5, left : left + 5] = 30
        images[i, label, top : top + 5, left : left + 5] = 200
    images += 8 * torch.randn(images.shape, generator=generator)
    return data.make("shapes", images.clamp(0, 255).to(torch.uint8), labels, COLOURS)


def brief(name: str, train: Dataset, epochs: float = 2) -> Classifier:
    """A classifier that was trained for a few epochs."""
    return Classifier(name, classifier.train(name, train, epochs, log=lambda _: None), 0.9, "", JudgedData.of(train))


def write_untrained(directory: Path, name: str, judged: Dataset) -> classifier.CNN:
    """Write an untrained judge of a training split to `directory`."""
    torch.manual_seed(0)
    net = classifier.CNN(classifier.WIDTHS[name], tuple(judged.images.shape[1:]), len(judged.classes)).eval()
    facts = {"test_accuracy": 0.1, "recipe": {"width": classifier.WIDTHS[name]}}
    classifier.write(directory, net, judged, facts)
    return net
