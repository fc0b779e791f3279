"""Data sets that are known by a name: torchvision's, and scikit-learn's digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from training.data.dataset import DataError, Dataset, Options, Split, make
from training.data.reading import Images, fit_arrays

TORCHVISION: dict[str, Callable[..., Any]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "kmnist": datasets.KMNIST,
    "cifar10": datasets.CIFAR10,
}
NAMES = (*TORCHVISION, "digits")


def load(name: str, root: Path, split: Split, options: Options) -> Dataset:
    """Load a split of one of NAMES; torchvision's sets are read from `root`, or downloaded into it."""
    images, labels, classes = _digits(split) if name == "digits" else _torchvision(name, root, split)
    return make(name, torch.from_numpy(fit_arrays(name, images, options)), torch.from_numpy(labels), classes)


def _torchvision(name: str, root: Path, split: Split) -> tuple[Images, np.ndarray[Any, Any], tuple[str, ...]]:
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
    pixels = np.asarray(dataset.data)
    images = pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    classes = tuple(str(i) for i in range(10)) if name == "mnist" else tuple(dataset.classes)
    return images, np.asarray(dataset.targets, np.int64), classes


def _digits(split: Split) -> tuple[Images, np.ndarray[Any, Any], tuple[str, ...]]:
    """scikit-learn's 1,797 digits (8x8, 17 grey levels); every sixth is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    in_split = (np.arange(len(images)) % 6 == 0) == (split == "test")
    return images[in_split], np.asarray(bunch.target, np.int64)[in_split], tuple(str(i) for i in range(10))
