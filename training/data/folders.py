"""Folders of pictures: which files are pictures, what their labels are, and which are the test split."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from training.data.dataset import HELD_OUT, DataError, Dataset, Options, Split, class_order, is_held_out, make
from training.data.reading import identify, read_pictures

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""The suffixes, in lower case, of files that are read. A file may hold another format than its suffix says."""
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}
"""Folders, in any case, that are splits and not classes."""
IGNORED = {"__MACOSX", "Thumbs.db"}
"""Files and folders that systems leave behind, besides hidden ones."""


def load(folder: Path, split: Split, options: Options) -> Dataset:
    """Load a split of a folder. Its sub-folders, if any, are the labels, numbered alike in both splits.

    Names that are numbers come first, by their value: 2 is before 10. Both splits are read together, so that they have
    the same shape. Raises DataError if the folder holds no pictures of that split, or unclear folders.
    """
    paths = sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    roots = _splits(folder, paths)
    names = [path.relative_to(folder).as_posix() for path in paths]
    images, numbers = read_pictures(folder, names, paths.__getitem__, options, [identify(path) for path in paths])
    labels = [_label(paths[number], roots) for number in numbers]
    classes = tuple(sorted(set(labels) - {""}, key=class_order))
    index = {"": -1, **{name: number for number, name in enumerate(classes)}}
    in_test = _in_test([paths[number] for number in numbers], roots, options)
    chosen = np.flatnonzero(in_test == (split == "test"))
    if not len(chosen):
        raise DataError(f"{folder} has no {split} images; put them into {folder / split}")
    selected = torch.tensor([index[labels[i]] for i in chosen])
    return make(folder.resolve().name, torch.from_numpy(images[chosen]), selected, classes)


def _splits(folder: Path, paths: list[Path]) -> dict[Split, Path]:
    """The folders of the splits; {"train": folder} if the folder has none. Raises DataError if that is unclear."""
    names = sorted({path.relative_to(folder).parts[0] for path in paths})
    splits = [name for name in names if name.lower() in SPLIT_NAMES and (folder / name).is_dir()]
    roots = {SPLIT_NAMES[name.lower()]: folder / name for name in splits}
    if not roots:
        return {"train": folder}
    if len(splits) == len(names) == len(roots) and "train" in roots:
        return roots
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise DataError(
        f"{folder} holds {listed}: unclear which are splits and which are classes; keep one folder `train` and one "
        "`test`, with the classes inside, and no other pictures beside them"
    )


def _files(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All files in a folder and its sub-folders, which may be links, except hidden ones and IGNORED.

    `above` has the device and inode of the folders above it: a link back to one of them is passed over.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED:
                continue
            if entry.is_dir():
                yield from _files(Path(entry.path), above | {here})
            else:
                yield Path(entry.path)


def _label(path: Path, roots: dict[Split, Path]) -> str:
    """The sub-folder of a split that holds `path`; empty if the split itself holds it."""
    root = next(root for root in roots.values() if path.is_relative_to(root))
    parts = path.relative_to(root).parts
    return unicodedata.normalize("NFC", os.fsencode(parts[0]).decode(errors="replace")) if len(parts) > 1 else ""


def _in_test(
    paths: list[Path], roots: dict[Split, Path], options: Options
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which pictures are the test split. Without a folder of it, the hash of a picture's name decides.

    So a picture stays in its split when others are added. One split is not empty because all of few pictures are in the
    other.
    """
    if "test" in roots:
        return np.array([path.is_relative_to(roots["test"]) for path in paths])
    share = HELD_OUT if options.held_out is None else options.held_out
    keys = [unicodedata.normalize("NFC", path.relative_to(roots["train"]).as_posix()) for path in paths]
    held_out = np.array([is_held_out(key.encode(errors="surrogateescape"), share) for key in keys])
    return held_out & (not held_out.all())
