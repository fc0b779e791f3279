"""Files that hold images as arrays: npz, keras' mnist.npz, and MNIST's idx."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.dataset import DataError, Dataset, Options, Split, is_held_out, make
from training.data.reading import Images, fit_arrays

KERAS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
"""The names of the images and labels in the npz files of `keras.datasets`."""


def load_npz(path: Path, split: Split, options: Options) -> Dataset:
    """Load an npz with `images` [N, H, W] or [N, H, W, C] uint8 and optionally `labels` [N] and `classes`, or keras'.

    The former is a training split, of which `held_out` may make a part the test split.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is neither a folder nor an npz nor a parquet file")
    try:
        with np.load(path) as archive:
            names = KERAS[split] if "x_train" in archive else ("images", "labels")
            images = archive[names[0]]
            labels = archive[names[1]] if names[1] in archive else np.full(len(images), -1)
            classes = archive["classes"].ravel().tolist() if "classes" in archive else None
            has_test = "x_train" in archive
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not an npz with an array `images` ({error})") from None
    dataset = from_arrays(path, images, labels.reshape(-1), classes, options)
    return dataset if has_test else hold_out(path, dataset, split, options)


def idx_folder(path: Path) -> Path | None:
    """The folder, `path` or one inside, that holds MNIST's idx files; None if there is none."""
    folders = (path, path / "raw", path / "MNIST" / "raw")
    return next((folder for folder in folders if (folder / "train-images-idx3-ubyte").exists()), None)


def load_idx(path: Path, folder: Path, split: Split, options: Options) -> Dataset:
    """Load MNIST's files of a split from `folder`, which may be a folder in `path`."""
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    return from_arrays(path, images, _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1), None, options)


def from_arrays(
    path: Path, images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str] | None, options: Options
) -> Dataset:
    """The data set of images [N, H, W] or [N, H, W, C] uint8, labels [N] from -1 (none) on, and names of the labels."""
    channels = 1 if images.ndim == 3 else images.shape[-1]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3) or not images.size:
        raise DataError(
            f"{path}: images must be uint8 [N, H, W], or [N, H, W, C] of 1 or 3 channels; they are {images.dtype} "
            f"{list(images.shape)}"
        )
    planes = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return labelled(path, fit_arrays(path, planes, options), labels, classes)


def labelled(path: Path, images: Images, labels: NDArray[Any], classes: Sequence[str] | None) -> Dataset:
    """The data set of images [N, C, H, W] and labels [N] from -1 (none) on; by default the numbers are the names."""
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < -1:
        raise DataError(
            f"{path}: labels must be {len(images)} whole numbers from -1 on; they are {labels.dtype} "
            f"{list(labels.shape)}"
        )
    count = int(labels.max()) + 1
    names = tuple(str(name) for name in (range(count) if classes is None else classes))
    if len(names) < count:
        raise DataError(f"{path}: `classes` has {len(names)} names, but labels go up to {count - 1}")
    return make(path.resolve().name, torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), names)


def hold_out(path: Path, dataset: Dataset, split: Split, options: Options) -> Dataset:
    """The split of a data set that has no test images: the hash of an image's number decides."""
    share = options.held_out or 0.0
    in_test = torch.tensor([is_held_out(str(number).encode(), share) for number in range(len(dataset.images))])
    chosen = in_test == (split == "test")
    if not chosen.any():
        raise DataError(f"{path} has no {split} images; --held-out 0.1 makes a tenth of the images the test split")
    return make(dataset.name, dataset.images[chosen], dataset.labels[chosen], dataset.classes)


def _read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file: bytes 0, 0, 8 for uint8, and the number of dimensions; the sizes; the elements."""
    try:
        content = file.read_bytes()
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it does not begin as one of {dimensions} dimensions")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(bytearray(content[4 + 4 * dimensions :]), np.uint8).reshape(shape)  # writable
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable idx file ({error})") from None
