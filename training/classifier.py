"""The judges: two classifiers per data set, in whose features evaluation measures samples. No generator is trained on
either.

They differ in width and seed. `report` gives the published figures. `select` is for choices (guidance, defaults,
checkpoints), so that nothing is selected by the classifier that reports.

A judge belongs to the data whose digest its manifest has, wherever it lies. Those of MNIST are in `ROOT/report` and
`ROOT/select`, those of other committed weights in `ROOT/NAME-DIGEST/`. `drawbridge judge` writes those of a user's data
to `judges/NAME-DIGEST/` of the working directory, where `runs/` and `weights/` are, too: an installed package may be
read-only, and an update replaces it.
"""

import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from models import store
from models.pixels import to_unit
from models.store import WeightsError
from training import files
from training.config import ConfigError
from training.data import Dataset, InfiniteSampler
from training.figures import MNIST, short_name

ROOT = Path(__file__).parent / "classifiers"
"""The committed judges."""
DIRECTORY = Path("judges")
"""The directory of a user's own judges."""
WIDTHS = {"report": 20, "select": 16}
NAMES = tuple(WIDTHS)
EPOCHS, BATCH, LR = 12, 128, 4e-3
MIN_IMAGES = 200_000
"""Images that training sees at least, because 12 epochs of a small set are too few."""
SMALLEST = 8
"""Pixels of the shorter side below which a net does not go, except to a quarter of the image."""


class CNN(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> features [B, 4 width] and logits [B, classes].

    Two levels halve the images, as for 28x28; images from 48x48 on have more, so that the last maps have about 8x8.
    """

    def __init__(self, width: int, shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        channels, *sides = shape
        levels = max(2, math.ceil(math.log2(min(sides) / SMALLEST)))
        layers = _convolution(channels, width)
        for level in range(levels):
            inputs, outputs = (min(2**k, 4) * width for k in (level, level + 1))
            layers += [nn.MaxPool2d(2), *_convolution(inputs, outputs), *_convolution(outputs, outputs)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).mean((2, 3))
        return features, self.head(features)


@dataclass(frozen=True)
class JudgedData:
    """The data that a judge was trained on."""

    name: str
    digest: str
    """SHA-256 of the training images and labels."""
    shape: tuple[int, ...]
    """[C, H, W]."""
    classes: tuple[str, ...]

    @staticmethod
    def of(dataset: Dataset) -> "JudgedData":
        """The description of a training split."""
        return JudgedData(dataset.name, dataset.digest, tuple(dataset.images.shape[1:]), dataset.classes)


@dataclass(frozen=True)
class Classifier:
    """A frozen classifier and its test accuracy."""

    name: str
    net: CNN
    accuracy: float
    """On the test images of its data."""
    digest: str
    """SHA-256 of the weights file."""
    data: JudgedData

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and probabilities [N, classes] of images [N, C, H, W] uint8."""
        outputs = [self.net(to_unit(part).contiguous(memory_format=torch.channels_last)) for part in images.split(256)]
        features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return features, logits.softmax(1)


def load(name: str) -> Classifier:
    """MNIST's committed classifier `name`. Raises WeightsError as `read` does."""
    return read(ROOT / name)


def read(directory: Path) -> Classifier:
    """The classifier in `directory`. Raises WeightsError if a file is missing, damaged or not the manifest's."""
    try:
        manifest = json.loads((directory / store.MANIFEST).read_text())
        content = (directory / store.TENSORS).read_bytes()
        digest, accuracy = str(manifest["digest"]), float(manifest["test_accuracy"])
        judged, width = _judged(manifest), int(manifest["recipe"]["width"])
    except FileNotFoundError:
        raise WeightsError(
            f"{directory} is no judge, or an incomplete one; train one with `drawbridge judge --data DATA`"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{directory / store.MANIFEST} is not a valid manifest ({error!r}); restore it") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise WeightsError(f"{directory / store.TENSORS} does not match the digest in its manifest; restore both")
    net = CNN(width, judged.shape, len(judged.classes))
    try:
        net.load_state_dict(safetensors.torch.load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{directory / store.TENSORS} does not fit its manifest: {reason}") from None
    net.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return Classifier(directory.name, net, accuracy, digest, judged)


def find(name: str, digest: str, directory: Path = DIRECTORY) -> Path | None:
    """The judge `name` of the data with this digest: a committed one, or one in `directory`; None if there is none."""
    for root in (ROOT, directory):
        for path in sorted((*root.glob(f"{name}/{store.MANIFEST}"), *root.glob(f"*/{name}/{store.MANIFEST}"))):
            try:
                found = json.loads(path.read_text())["dataset"]["digest"]
            except (ValueError, TypeError, KeyError) as error:
                raise WeightsError(f"{path} is not a valid manifest ({error!r}); restore or remove it") from None
            if found == digest:
                return path.parent
    return None


def place(name: str, judged: Dataset, directory: Path) -> Path:
    """Where `command` writes the judge `name`: MNIST's to ROOT, others to `directory`, by their data's digest."""
    if judged.digest == MNIST:
        return ROOT / name
    safe = re.sub(r"[^\w.-]+", "-", short_name(judged.name))
    return directory / f"{safe}-{judged.digest[:12]}" / name


def _judged(manifest: dict[str, Any]) -> JudgedData:
    """The data in a judge's manifest. Those of MNIST are older than `shape` and `classes`."""
    fields = {"shape": (1, 28, 28), "classes": [str(digit) for digit in range(10)], **manifest["dataset"]}
    return JudgedData(fields["name"], fields["digest"], tuple(fields["shape"]), tuple(fields["classes"]))


def _print_line(line: str) -> None:
    print(line, flush=True)


def train(name: str, train_data: Dataset, epochs: float | None = None, log: Callable[[str], None] = _print_line) -> CNN:
    """Train classifier `name` on augmented images (see `augmented`) with a one-cycle learning rate schedule.

    By default for 12 epochs, and for as many more as it takes to see MIN_IMAGES. Images without a label are left out.
    """
    torch.manual_seed(NAMES.index(name))
    images, labels = _labelled(train_data)
    net = CNN(WIDTHS[name], tuple(images.shape[1:]), len(train_data.classes)).to(memory_format=torch.channels_last)
    total = max(EPOCHS * len(images), MIN_IMAGES) if epochs is None else epochs * len(images)
    iterations = max(1, int(total) // BATCH)
    sampler = InfiniteSampler(len(images), BATCH, seed=NAMES.index(name))
    batches = ((augmented(to_unit(images[index])), labels[index]) for index in sampler)

    def progress(i: int, loss: float) -> None:
        log(f"{name}: iteration {i} of {iterations}, loss {loss:.4f}")

    return fit(net, batches, iterations, progress)


def fit(
    net: CNN,
    batches: Iterator[tuple[Tensor, Tensor]],
    iterations: int,
    progress: Callable[[int, float], None] | None = None,
) -> CNN:
    """Train `net` on `iterations` batches of images [B, C, H, W] in [-1, 1] and labels [B], and return it.

    The learning rate follows one cycle. `progress` gets the iteration and its loss, every 200 iterations.
    """
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, max(2, iterations))
    for i in range(iterations):
        x, labels = next(batches)
        loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last))[1], labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and i % 200 == 0:
            progress(i, float(loss.detach()))
    return net.eval()


def augmented(x: Tensor) -> Tensor:
    """Images [B, C, H, W], each randomly rotated by up to 12 degrees, scaled by up to 12 %, sheared, and shifted by up
    to a fourteenth of its side.

    Colour pictures are mirrored half of the time, and continued by the colours at their edges. Grey ones are not, since
    they may be characters; what comes in from outside is black.
    """
    count = len(x)
    angle = (torch.rand(count) * 2 - 1) * 0.21
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.12
    shear = (torch.rand(count) * 2 - 1) * 0.2
    shift = (torch.rand(count, 2) * 2 - 1) * (2 / 14)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack((cosine, -sine + shear, shift[:, 0], sine, cosine, shift[:, 1]), dim=1).view(count, 2, 3)
    colour = x.shape[1] == 3
    if colour:
        rows[:, :, 0] *= 1 - 2 * torch.randint(2, (count, 1))
    coordinates = F.affine_grid(rows, list(x.shape), align_corners=False)
    padding = "border" if colour else "zeros"  # zero is black after the addition of 1
    return F.grid_sample(x + 1, coordinates, padding_mode=padding, align_corners=False) - 1


def command(names: tuple[str, ...], train_data: Dataset, test: Dataset, directory: Path, epochs: float | None) -> None:
    """Train the classifiers `names` on a data set, test them, and write them to where `find` looks.

    Raises ConfigError if the labels do not suffice: it takes two classes with training images, and a labelled test
    image.
    """
    check(train_data, test)
    places = {name: place(name, train_data, directory) for name in names}
    for path in places.values():
        files.require_writable(path)
    for name, path in places.items():
        net = train(name, train_data, epochs)
        accuracies = class_accuracies(Classifier(name, net, 0.0, "", JudgedData.of(train_data)), test)
        write(path, net, train_data, {**accuracies, "recipe": _recipe(name, epochs)})
        worst = min(accuracies["accuracy_by_class"], key=accuracies["accuracy_by_class"].get)
        print(
            f"{path}: {100 * accuracies['test_accuracy']:.2f} % accuracy on the test split; worst class {worst}, "
            f"{100 * accuracies['accuracy_by_class'][worst]:.2f} %"
        )


def check(train_data: Dataset, test: Dataset) -> None:
    """Raise ConfigError if a classifier cannot be trained on one split and tested on the other."""
    name = short_name(train_data.name)
    labels = train_data.labels[train_data.labels >= 0].unique()
    if len(labels) < 2:
        raise ConfigError(
            f"{name} has {'one class' if len(labels) else 'no labels'}; a judge needs two classes, as sub-folders with "
            "images. `drawbridge evaluate` also measures without a judge"
        )
    if not (test.labels >= 0).any():
        raise ConfigError(f"{name} has no labelled test images to test a judge on")


def class_accuracies(classifier: Classifier, test: Dataset) -> dict[str, Any]:
    """`test_accuracy` and, by the name of each class with test images, `accuracy_by_class`."""
    images, labels = _labelled(test)
    correct = (classifier.features_and_logits(images)[1].argmax(1) == labels).float()
    present = {int(label): test.classes[label] for label in labels.unique()}
    by_class = {name: float(correct[labels == label].mean()) for label, name in present.items()}
    return {"test_accuracy": float(correct.mean()), "accuracy_by_class": by_class}


def write(directory: Path, net: CNN, judged: Dataset, facts: dict[str, Any]) -> None:
    """Write a classifier of the training split `judged` to `directory`, with `facts` in its manifest."""
    content = safetensors.torch.save({key: value.contiguous() for key, value in net.state_dict().items()})
    manifest: dict[str, Any] = {
        **facts,
        "digest": hashlib.sha256(content).hexdigest(),
        "dataset": {
            "name": short_name(judged.name),
            "digest": judged.digest,
            "shape": list(judged.images.shape[1:]),
            "classes": list(judged.classes),
        },
        "device": "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    directory.mkdir(parents=True, exist_ok=True)
    store.write_atomic(directory / store.TENSORS, content)
    store.write_atomic(directory / store.MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _recipe(name: str, epochs: float | None) -> dict[str, Any]:
    seen = {"epochs": epochs or EPOCHS} | ({} if epochs else {"min_images": MIN_IMAGES})
    return {"width": WIDTHS[name], **seen, "batch": BATCH, "lr": LR, "seed": NAMES.index(name)}


def _labelled(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The images that have a label, and their labels."""
    known = dataset.labels >= 0
    return dataset.images[known], dataset.labels[known]


def _convolution(fan_in: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
