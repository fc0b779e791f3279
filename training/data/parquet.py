"""Parquet files of encoded pictures and labels, as Hugging Face's datasets write them. They need pyarrow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.arrays import hold_out, labelled
from training.data.dataset import DataError, Dataset, Options, Split, class_order
from training.data.reading import identify, read_pictures

SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
"""How the names of a split's files begin, in any case; a later beginning counts where no name has an earlier one."""


def find(path: Path) -> list[Path]:
    """The parquet files at `path`: itself, or those in the folder or in its sub-folder `data`."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    return sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))


def load(path: Path, files: list[Path], split: Split, options: Options) -> Dataset:
    """Load a split of the files that `find` gave: by the files' names, or else as `hold_out` divides the images.

    The pictures are the first column of structures with `bytes`. The labels are the first column of class labels, or
    `label`: numbers, or names. Raises DataError if there are no pictures, or pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: parquet needs the parquet extra: pip install '.[parquet]' in a checkout of Drawbridge"
        ) from None
    parts = {name: _starting(files, beginnings) for name, beginnings in SPLITS.items()}
    chosen = parts[split] if parts["train"] and parts["test"] else files
    try:
        table = parquet.read_table([str(file) for file in chosen])
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as parquet ({' '.join(str(error).split())})") from None
    pictures = _pictures(path, table)
    names = [f"row {number}" for number in range(len(pictures))]
    images, numbers = read_pictures(
        path, names, lambda number: pictures[number].as_py() or b"", options, [identify(file) for file in chosen]
    )
    labels, classes = _labels(table)
    dataset = labelled(path, images, labels[numbers], classes)
    return dataset if chosen is not files else hold_out(path, dataset, split, options)


def _starting(files: list[Path], beginnings: Sequence[str]) -> list[Path]:
    """The files whose names have the first of `beginnings` that any of the names has."""
    found = ([file for file in files if file.name.lower().startswith(beginning)] for beginning in beginnings)
    return next(filter(None, found), [])


def _pictures(path: Path, table: Any) -> Any:
    """The column of the pictures' bytes. Raises DataError if there is none, or no row."""
    from pyarrow import compute, types

    for field in table.schema:
        if table.num_rows and types.is_struct(field.type) and "bytes" in [part.name for part in field.type]:
            return compute.struct_field(table[field.name], "bytes")
    raise DataError(
        f"{path} has no pictures: no column of structures with `bytes`, as Hugging Face's datasets write them"
    )


def _labels(table: Any) -> tuple[NDArray[Any], list[str] | None]:
    """The labels, -1 for none, and their names, if the file or its values have them."""
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    columns = [name for name in features if features[name].get("_type") == "ClassLabel"]
    columns += [name for name in ("label", "labels") if name in table.column_names]
    if not columns:
        return np.full(table.num_rows, -1), None
    values = table[columns[0]].to_pylist()
    if any(isinstance(value, str) for value in values):
        classes = sorted({value for value in values if value is not None}, key=class_order)
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(value, -1) for value in values]), classes
    labels = np.array([-1 if value is None else value for value in values])
    return labels, features.get(columns[0], {}).get("names") if labels.max() >= 0 else None
