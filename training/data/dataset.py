"""A data set in memory, and how its images are read."""

import hashlib
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from models.nets import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, is_side
from pictures.decoding import Background, parse_color
from pictures.fitting import RESIZES, Resize

Split = Literal["train", "test"]

SIDES = f"multiples of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}"
"""The heights and widths that networks take, in words."""
HELD_OUT = 0.1
"""Default share of a folder's pictures that are the test split, if the folder has none."""

SHOWN_CLASSES = 20
"""Classes that `summary` lists."""


class DataError(Exception):
    """A data set cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images in memory, or, in the lab, points."""

    name: str
    images: Tensor
    """[N, C, H, W] uint8, 0 black, of 1 channel (grey) or 3 (red, green, blue); or points [N, D] float32 in [-1, 1]."""
    labels: Tensor
    """[N] int64, -1 if the class is unknown."""
    classes: tuple[str, ...]
    """The names of the labels; empty if there are no labels."""
    digest: str
    """SHA-256 of the images' bytes followed by the labels'."""


def make(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Dataset:
    """Build a Dataset and compute its digest. Raises DataError if its classes cannot be told apart by name."""
    if repeated := sorted({one for one in classes if classes.count(one) > 1}):
        raise DataError(f"{name}: several classes are called {repeated[0]!r}; rename them, so that labels are names")
    if "" in classes:
        raise DataError(f"{name}: a class has no name; name all classes")
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return Dataset(name, images, labels, classes, digest.hexdigest())


def summary(dataset: Dataset) -> list[str]:
    """Lines that describe a data set: its name, number and shape, and the counts of its first SHOWN_CLASSES classes."""
    unlabelled, *counts = (dataset.labels + 1).bincount(minlength=len(dataset.classes) + 1).tolist()
    shape = "x".join(map(str, dataset.images.shape[1:]))
    images = _count(len(dataset.images), "image")
    classes = _count(len(dataset.classes), "class", "classes") if dataset.classes else "without labels"
    lines = [f"data: {dataset.name}, {images} of {shape}, {classes}"]
    lines += [f"{count:8} {name}" for name, count in zip(dataset.classes[:SHOWN_CLASSES], counts, strict=False)]
    if others := counts[SHOWN_CLASSES:]:
        lines.append(f"         and {len(others)} more classes, of {min(others)} to {max(others)} images each")
    if dataset.classes and unlabelled:
        lines.append(f"{unlabelled:8} without a label")
    return lines


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


@dataclass(frozen=True)
class Options:
    """How the images of a data set are read. Raises DataError for values that are not allowed."""

    size: tuple[int, int] | None = None
    """(height, width); None keeps the images' own."""
    channels: int | None = None
    """1 or 3; None has 1 if all images are grey, else 3."""
    resize: Resize = "crop"
    """How images of other proportions come to `size`."""
    background: Background = "white"
    """The colour behind transparent pixels, and around padded pictures."""
    held_out: float | None = None
    """Share of the images that are the test split of data without one; None is HELD_OUT for folders, else 0."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be decoded, instead of refusing the data set."""

    def __post_init__(self) -> None:
        if self.size is not None and not all(map(is_side, self.size)):
            raise DataError(f"--size: use {SIDES}; it is {self.size[0]}x{self.size[1]}")
        if self.channels not in (None, 1, 3):
            raise DataError("--channels: use 1 (grey) or 3 (colour)")
        if self.resize not in RESIZES:
            raise DataError(f"--resize: use {', '.join(RESIZES)}")
        if not 0 <= (self.held_out or 0) < 1:
            raise DataError("--held-out: use 0 to less than 1")
        try:
            parse_color(self.background)
        except ValueError as error:
            raise DataError(f"--background: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The values that are not the default."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Options":
        """The options that `to_json` gave `values` of."""
        return Options(**{**values, "size": tuple(values["size"]) if "size" in values else None})


def parse_size(text: str) -> tuple[int, int]:
    """The height and width in `32` or `48x64`. Raises DataError for other text and sizes."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise DataError(f"--size: use a number, or HEIGHTxWIDTH, in {SIDES}; it is {text!r}")
    height, width = int(match[1]), int(match[2] or match[1])
    return Options(size=(height, width)).size or (height, width)


def check_size(place: object, height: int, width: int) -> None:
    """Raise DataError if images at `place` must be resized."""
    if not (is_side(height) and is_side(width)):
        raise DataError(f"{place}: its images are {height}x{width}; give --size N or --size HxW, {SIDES}")


def class_order(name: str) -> tuple[bool, int, str]:
    """Sorts names of classes: numbers by their value, then the others."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def is_held_out(key: bytes, share: float) -> bool:
    """Whether the image that `key` identifies is one of the `share` of the test split; depends on nothing else."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) < math.ldexp(share, 64)
