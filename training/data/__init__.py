"""Data sets, held in memory as bytes, and the sampler that orders them for training."""

import os
import re
from pathlib import Path

from training.data import arrays, folders, named, parquet
from training.data.dataset import DataError, Dataset, Options, Split, make, parse_size, summary
from training.data.named import NAMES
from training.data.sampler import InfiniteSampler

__all__ = [
    "NAMES",
    "DataError",
    "Dataset",
    "InfiniteSampler",
    "Options",
    "Split",
    "known_name",
    "load",
    "make",
    "parse_size",
    "summary",
]

DEFAULT = Options()


def load(name: str, root: Path | None = None, split: Split = "train", options: Options = DEFAULT) -> Dataset:
    """Load the `train` or `test` split of a data set: one of NAMES, in upper or lower case, or a path.

    `root` is the directory of torchvision's data sets (default: $DRAWBRIDGE_DATA, else `data`); missing ones are
    downloaded into it. A path is what `drawbridge dataset` writes, another folder of pictures, an npz or a parquet
    file. The names in NAMES come before paths, and other spellings of them after. Raises DataError if the data is
    neither there nor can be downloaded, or needs other options.
    """
    if name not in NAMES and Path(name).exists():
        return _path(Path(name), split, options)
    known = known_name(name)
    if known is None:
        raise DataError(f"{name!r} is neither a data set nor a folder or file; the data sets are {', '.join(NAMES)}")
    return named.load(known, root or Path(os.environ.get("DRAWBRIDGE_DATA", "data")), split, options)


def known_name(name: str) -> str | None:
    """The name in NAMES that `name` spells: `fashion_mnist` and `FashionMNIST` are `fashion-mnist`."""
    return {_letters(known): known for known in NAMES}.get(_letters(name))


def _letters(name: str) -> str:
    """The letters and digits of a name in lower case."""
    return re.sub(r"[\W_]", "", name).lower()


def _path(path: Path, split: Split, options: Options) -> Dataset:
    """The data set in a file or folder."""
    if files := parquet.find(path):
        return parquet.load(path, files, split, options)
    if path.is_file():
        return arrays.load_npz(path, split, options)
    if (folder := arrays.idx_folder(path)) is not None:
        return arrays.load_idx(path, folder, split, options)
    return folders.load(path, split, options)
