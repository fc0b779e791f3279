"""The two MNIST classifiers that evaluation measures samples with. No generator is trained on either.

They differ in width and seed. `report` gives the published figures. `select` is for choices (guidance, defaults,
checkpoints), so that nothing is selected by the classifier that reports.
"""

import hashlib
import json
import platform
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
from training import data, files
from training.data import Dataset, InfiniteSampler

ROOT = Path(__file__).parent / "classifiers"
WIDTHS = {"report": 20, "select": 16}
NAMES = tuple(WIDTHS)
EPOCHS, BATCH, LR = 12, 128, 4e-3


class CNN(nn.Module):
    """Images [B, 1, 28, 28] in [-1, 1] -> features [B, 4 width] and logits [B, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            *_convolution(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).mean((2, 3))
        return features, self.head(features)


@dataclass(frozen=True)
class Classifier:
    """A frozen classifier and its test accuracy."""

    name: str
    net: CNN
    accuracy: float
    """On the 10,000 test images of MNIST."""
    digest: str
    """SHA-256 of the weights file."""

    @torch.inference_mode()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and probabilities [N, 10] of images [N, 1, 28, 28] uint8."""
        outputs = [self.net(to_unit(part).contiguous(memory_format=torch.channels_last)) for part in images.split(256)]
        features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return features, logits.softmax(1)


def load(name: str) -> Classifier:
    """The committed classifier `name`. Raises WeightsError if a file is missing, damaged or not the manifest's."""
    directory = ROOT / name
    try:
        manifest = json.loads((directory / store.MANIFEST).read_text())
        content = (directory / store.TENSORS).read_bytes()
        digest, accuracy = str(manifest["digest"]), float(manifest["test_accuracy"])
    except FileNotFoundError:
        raise WeightsError(f"{directory} is incomplete; train it with `python -m training judge {name}`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{directory / store.MANIFEST} is not a valid manifest ({error!r}); restore it") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise WeightsError(f"{directory / store.TENSORS} does not match the digest in its manifest; restore both")
    net = CNN(WIDTHS[name])
    try:
        net.load_state_dict(safetensors.torch.load(content))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{directory / store.TENSORS} does not fit classifier {name}: {error}") from None
    net.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return Classifier(name, net, accuracy, digest)


def _print_line(line: str) -> None:
    print(line, flush=True)


def train(name: str, train_data: Dataset, epochs: int = EPOCHS, log: Callable[[str], None] = _print_line) -> CNN:
    """Train classifier `name` on augmented images (see `augmented`) with a one-cycle learning rate schedule."""
    torch.manual_seed(NAMES.index(name))
    net = CNN(WIDTHS[name]).to(memory_format=torch.channels_last)
    iterations = epochs * len(train_data.images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, iterations)
    batches: Iterator[Tensor] = InfiniteSampler(len(train_data.images), BATCH, seed=NAMES.index(name))
    for i in range(iterations):
        index = next(batches)
        x = augmented(to_unit(train_data.images[index])).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(net(x)[1], train_data.labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if i % 200 == 0:
            log(f"{name}: iteration {i} of {iterations}, loss {float(loss.detach()):.4f}")
    return net.eval()


def augmented(x: Tensor) -> Tensor:
    """Images [B, 1, 28, 28], each randomly rotated by up to 12 degrees, scaled by up to 12 %, sheared, and shifted by
    up to 2 pixels.
    """
    count = len(x)
    angle = (torch.rand(count) * 2 - 1) * 0.21
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.12
    shear = (torch.rand(count) * 2 - 1) * 0.2
    shift = (torch.rand(count, 2) * 2 - 1) * (2 / 14)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack((cosine, -sine + shear, shift[:, 0], sine, cosine, shift[:, 1]), dim=1)
    coordinates = F.affine_grid(rows.view(count, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, coordinates, align_corners=False) - 1  # pixels from outside are black, which is -1


def command(name: str, data_root: Path | None) -> None:
    """Train classifier `name` on MNIST, test it, and write it to the directory that `load` reads."""
    files.require_writable(ROOT / name)
    mnist, test = (data.load("mnist", data_root, split) for split in ("train", "test"))
    net = train(name, mnist)
    probabilities = Classifier(name, net, 0.0, "").features_and_logits(test.images)[1]
    accuracy = float((probabilities.argmax(1) == test.labels).float().mean())
    content = safetensors.torch.save({key: value.contiguous() for key, value in net.state_dict().items()})
    manifest: dict[str, Any] = {
        "test_accuracy": accuracy,
        "digest": hashlib.sha256(content).hexdigest(),
        "dataset": {"name": mnist.name, "digest": mnist.digest},
        "recipe": {"width": WIDTHS[name], "epochs": EPOCHS, "batch": BATCH, "lr": LR, "seed": NAMES.index(name)},
        "device": "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    store.write_atomic(ROOT / name / store.TENSORS, content)
    store.write_atomic(ROOT / name / store.MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    print(f"{name}: {100 * accuracy:.2f} % accuracy on the test split")


def _convolution(fan_in: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
