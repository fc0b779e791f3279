"""Data sets, held in memory as bytes, and the order in which training sees them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets

TORCHVISION: dict[str, Callable[..., Any]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "kmnist": datasets.KMNIST,
}
NAMES = (*TORCHVISION, "digits")
"""The data sets that have a name; a path to a folder of images is one too."""
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}


Split = Literal["train", "test"]


class DataError(Exception):
    """A data set cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images in memory: 28x28, grey. In the lab, points."""

    name: str
    images: Tensor
    """[N, 1, 28, 28] uint8, 0 black; or points [N, D] float32 in [-1, 1]."""
    labels: Tensor
    """[N] int64, -1 where there is none."""
    classes: tuple[str, ...]
    """The labels' names; empty where there are none."""
    digest: str
    """SHA-256 of the images' bytes followed by the labels'."""


def make(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Dataset:
    """A Dataset of the parts, with its digest."""
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return Dataset(name, images, labels, classes, digest.hexdigest())


def load(name: str, root: Path | None = None, split: Split = "train") -> Dataset:
    """The data set's `train` or `test` split: one of NAMES, or a path to a folder of images.

    `root` is where torchvision's data sets lie, or go to; $DRAWBRIDGE_DATA, else `data`, where None. Raises DataError
    where the data is neither there nor to be downloaded.
    """
    if name == "digits":
        return _digits(split)
    if name in TORCHVISION:
        return _torchvision(name, root or Path(os.environ.get("DRAWBRIDGE_DATA", "data")), split)
    if Path(name).is_dir():
        return _folder(Path(name), split)
    raise DataError(f"no data set is called {name!r}, nor is it a folder; there are: {', '.join(NAMES)}")


class InfiniteSampler(Iterator[Tensor]):
    """Indices of one full batch after another, [batch] int64, for ever.

    Every epoch is a permutation that is a pure function of (seed, epoch); what is left of one begins the next batch, so
    that no image is passed over and no batch is short.
    """

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size, self.batch, self.seed = size, batch, seed
        self.epoch, self.position = 0, 0
        self.order = self._permutation()

    def __next__(self) -> Tensor:
        parts, wanted = [], self.batch
        while wanted:
            part = self.order[self.position : self.position + wanted]
            parts.append(part)
            self.position += len(part)
            wanted -= len(part)
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self.order = self._permutation()
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        """The position in the data."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state`."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator)


def _torchvision(name: str, root: Path, split: Split) -> Dataset:
    make_dataset = TORCHVISION[name]
    try:
        found = make_dataset(root, train=split == "train", download=False)
    except RuntimeError:
        try:
            found = make_dataset(root, train=split == "train", download=True)
        except (RuntimeError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{name} is not under {root} and cannot be downloaded ({why}); point --data-root or DRAWBRIDGE_DATA at "
                "a directory that has it in torchvision's layout, or use --data digits, which needs no download"
            ) from None
    classes = tuple(str(i) for i in range(10)) if name == "mnist" else tuple(found.classes)
    return make(name, found.data[:, None].contiguous(), found.targets.to(torch.int64), classes)


def _digits(split: Split) -> Dataset:
    """scikit-learn's 1,797 digits (8x8, 17 greys), enlarged and centred in 28x28; every sixth is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] / 16
    large = F.interpolate(small, size=(24, 24), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (F.pad(large, (2, 2, 2, 2)) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(np.asarray(bunch.target)).to(torch.int64)
    chosen = (torch.arange(len(labels)) % 6 == 0) == (split == "test")
    return make("digits", images[chosen], labels[chosen], tuple(str(i) for i in range(10)))


def _folder(folder: Path, split: Split) -> Dataset:
    """Images of `folder/train` or `folder/test`; sub-folders, if there are any, are the labels, the same in both.

    A folder without `train` and `test` is all for training.
    """
    from PIL import Image, UnidentifiedImageError

    divided = [folder / part for part in ("train", "test") if (folder / part).is_dir()]
    here = folder / split if divided else folder
    if not here.is_dir() or (split == "test" and not divided):
        raise DataError(f"{folder} has no {split} images; put them into {folder / split}")
    paths = _pictures(here)
    if not paths:
        raise DataError(f"{here} holds no images ({', '.join(sorted(PICTURES))})")
    classes = tuple(sorted({_class(path, root) for root in divided or [folder] for path in _pictures(root)} - {""}))
    arrays = []
    for path in paths:
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS)))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path} does not read as an image ({error}); mend it or take it out") from None
    labels = torch.tensor([classes.index(name) if (name := _class(path, here)) else -1 for path in paths])
    return make(str(folder), torch.from_numpy(np.stack(arrays))[:, None], labels, classes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def _class(path: Path, folder: Path) -> str:
    """The sub-folder of `folder` that `path` is in, or nothing."""
    return path.relative_to(folder).parts[0] if path.parent != folder else ""
