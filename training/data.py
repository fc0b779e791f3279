"""Data sets, held in memory as bytes, and the sampler that orders them for training."""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets

TORCHVISION: dict[str, Callable[..., Any]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "kmnist": datasets.KMNIST,
}
NAMES = (*TORCHVISION, "digits")
"""The named data sets; a folder of images, a folder of idx files and an npz are data sets, too."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}

Split = Literal["train", "test"]


class DataError(Exception):
    """A data set cannot be loaded; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Grey images of 28x28 pixels in memory, or, in the lab, points."""

    name: str
    images: Tensor
    """[N, 1, 28, 28] uint8, 0 black; or points [N, D] float32 in [-1, 1]."""
    labels: Tensor
    """[N] int64, -1 if the class is unknown."""
    classes: tuple[str, ...]
    """The names of the labels; empty if there are no labels."""
    digest: str
    """SHA-256 of the images' bytes followed by the labels'."""


def make(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Dataset:
    """Build a Dataset and compute its digest."""
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return Dataset(name, images, labels, classes, digest.hexdigest())


def load(name: str, root: Path | None = None, split: Split = "train") -> Dataset:
    """Load the `train` or `test` split of a data set: one of NAMES, in upper or lower case, or a path.

    `root` is the directory of torchvision's data sets (default: $DRAWBRIDGE_DATA, else `data`); missing ones are
    downloaded into it. A path is what `drawbridge dataset` writes, or another folder of images. The names in NAMES come
    before paths, and other spellings of them after. Raises DataError if the data is neither there nor can be
    downloaded.
    """
    if name not in NAMES and Path(name).exists():
        return _path(Path(name), split)
    known = {_letters(known): known for known in NAMES}.get(_letters(name))
    if known is None:
        raise DataError(f"{name!r} is neither a data set nor a folder or an npz; the data sets are {', '.join(NAMES)}")
    if known == "digits":
        return _digits(split)
    return _torchvision(known, root or Path(os.environ.get("DRAWBRIDGE_DATA", "data")), split)


def _letters(name: str) -> str:
    """The letters of a name in lower case: `fashion_mnist` and `FashionMNIST` are `fashion-mnist`."""
    return re.sub(r"[\W_]", "", name).lower()


class InfiniteSampler(Iterator[Tensor]):
    """An endless iterator over full batches of indices, [batch] int64 each.

    Every epoch is a permutation, a pure function of (seed, epoch). A batch may span two epochs, so every epoch visits
    every image once and no batch is short.
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
        """The position in the data: epoch, and index within it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the position that `state` holds."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator)


def _torchvision(name: str, root: Path, split: Split) -> Dataset:
    make_dataset = TORCHVISION[name]
    try:
        dataset = make_dataset(root, train=split == "train", download=True)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        # The last line of torchvision's message has the reason. Damaged files raise ValueError or AssertionError.
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip("<>")
        raise DataError(
            f"{name} can neither be read from {root} nor downloaded into it ({reason}); set --data-root or "
            "DRAWBRIDGE_DATA to a directory that has it in torchvision's layout, or use --data digits, which needs no "
            "download"
        ) from None
    classes = tuple(str(i) for i in range(10)) if name == "mnist" else tuple(dataset.classes)
    return make(name, dataset.data[:, None].contiguous(), dataset.targets.to(torch.int64), classes)


def _digits(split: Split) -> Dataset:
    """scikit-learn's 1,797 digits (8x8, 17 grey levels), enlarged and centred in 28x28; every sixth is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] / 16
    large = F.interpolate(small, size=(24, 24), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (F.pad(large, (2, 2, 2, 2)) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(np.asarray(bunch.target)).to(torch.int64)
    in_split = (torch.arange(len(labels)) % 6 == 0) == (split == "test")
    return make("digits", images[in_split], labels[in_split], tuple(str(i) for i in range(10)))


def _path(path: Path, split: Split) -> Dataset:
    """The data set of an npz, of a folder of idx files, or of a folder of images."""
    if path.is_file():
        return _npz(path, split)
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if (folder / "train-images-idx3-ubyte").exists():
            return _idx(path, folder, split)
    return _folder(path, split)


def _npz(path: Path, split: Split) -> Dataset:
    """The arrays `images` and, optionally, `labels` of an npz."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is neither a folder nor an npz")
    if split == "test":
        raise DataError(f"{path} has no test images; an npz is a training split")
    try:
        with np.load(path) as archive:
            images = archive["images"]
            labels = archive["labels"] if "labels" in archive else np.full(len(images), -1)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not an npz with an array `images` ({error})") from None
    return _from_arrays(path, images, labels)


def _idx(path: Path, folder: Path, split: Split) -> Dataset:
    """MNIST's files of a split in `folder`, which may be a folder in `path`."""
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    return _from_arrays(path, images, _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1))


def _read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file: bytes 0, 0, 8 for uint8, and the number of dimensions; the sizes; the elements."""
    try:
        content = file.read_bytes()
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it does not begin as one of {dimensions} dimensions")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content[4 + 4 * dimensions :], np.uint8).reshape(shape)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable idx file ({error})") from None


def _from_arrays(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> Dataset:
    """A data set of images uint8 [N, 28, 28] and whole numbers [N] from -1 on, where -1 is no label."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise DataError(f"{path}: images must be uint8 [N, 28, 28]; they are {images.dtype} {list(images.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < -1:
        raise DataError(
            f"{path}: labels must be {len(images)} whole numbers from -1 on; they are {labels.dtype} "
            f"{list(labels.shape)}"
        )
    classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    return make(str(path), torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)), classes)


def _folder(folder: Path, split: Split) -> Dataset:
    """Images of `folder/train` or `folder/test`; sub-folders, if any, are the labels, numbered alike in both splits.

    Names that are numbers come first, by their value: 2 is before 10. Without `train` and `test` the whole folder is
    the training split.
    """
    from PIL import Image, UnidentifiedImageError

    splits = [folder / part for part in ("train", "test") if (folder / part).is_dir()]
    root = folder / split if splits else folder
    if not root.is_dir() or (split == "test" and not splits):
        raise DataError(f"{folder} has no {split} images; put them into {folder / split}")
    paths = _image_paths(root)
    if not paths:
        raise DataError(f"{root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    names = {_class(path, part) for part in splits or [folder] for path in _image_paths(part)} - {""}
    classes = tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))
    arrays = []
    for path in paths:
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS)))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path} is not a readable image ({error}); repair or remove it") from None
    labels = torch.tensor([classes.index(name) if (name := _class(path, root)) else -1 for path in paths])
    return make(str(folder), torch.from_numpy(np.stack(arrays))[:, None], labels, classes)


def _image_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _class(path: Path, folder: Path) -> str:
    """The sub-folder of `folder` that holds `path`; empty if `folder` itself holds it."""
    return path.relative_to(folder).parts[0] if path.parent != folder else ""
