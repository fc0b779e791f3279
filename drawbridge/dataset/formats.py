"""The formats of data sets: npz, idx, png, parquet and webdataset. The same contents give the same bytes.

Images are written one after another, or in blocks of BLOCK, so memory does not grow with the data set.
"""

import io
import itertools
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_IDX_CLASSES = 256
"""Labels that an idx file can tell apart: it has a byte for each."""
BLOCK = 1000
"""Rows in a row group of parquet."""

Image = NDArray[np.uint8]
"""[H, W], or [H, W, 3] in colour."""


@dataclass(frozen=True)
class Split:
    """The images of a split and their labels. The images are read once."""

    name: str
    """`train` or `test`."""
    labels: NDArray[np.int64]
    images: Iterable[Image]


@dataclass(frozen=True)
class Contents:
    """What is written: one split or two, the names of the labels, and the shape of an image."""

    splits: Sequence[Split]
    classes: Sequence[str]
    shape: tuple[int, ...]
    """[H, W], or [H, W, 3] in colour."""


def write_npz(file: Path, contents: Contents) -> None:
    """Write `images`, `labels` and `classes`; with a test split `x_train`, `y_train`, `x_test`, `y_test`, as keras."""
    with zipfile.ZipFile(file, "w") as archive:
        for split in contents.splits:
            names = ("images", "labels") if len(contents.splits) == 1 else (f"x_{split.name}", f"y_{split.name}")
            with archive.open(_member(names[0]), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), *contents.shape)}
                np.lib.format.write_array_header_1_0(member, header)
                for image in split.images:
                    member.write(image.tobytes())
            _write_array(archive, names[1], split.labels)
        _write_array(archive, "classes", np.array(contents.classes))


def write_idx(folder: Path, contents: Contents) -> None:
    """Write MNIST's files, which torchvision.datasets.MNIST(root=folder) reads. They hold no names of classes."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in contents.splits:
        prefix = {"train": "train", "test": "t10k"}[split.name]
        with (raw / f"{prefix}-images-idx3-ubyte").open("wb") as file:
            file.write(struct.pack(">IIII", 2051, len(split.labels), *contents.shape))
            for image in split.images:
                file.write(image.tobytes())
        labels = struct.pack(">II", 2049, len(split.labels)) + split.labels.astype(np.uint8).tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def write_png(folder: Path, contents: Contents) -> None:
    """Write a directory for each class, which torchvision.datasets.ImageFolder reads; with a test split, in `train` and
    `test`."""
    from service.codecs.folders import folder_names

    for split in contents.splits:
        root = folder if len(contents.splits) == 1 else folder / split.name
        folders = [root / name for name in folder_names(contents.classes)]
        for number, (label, png) in enumerate(_pngs(split)):
            folders[label].mkdir(parents=True, exist_ok=True)
            (folders[label] / f"{number:06d}.png").write_bytes(png)


def write_parquet(output: Path, contents: Contents, shard_size: int | None) -> None:
    """Write an Image and a ClassLabel per row, as Hugging Face's datasets do: `data/train-00000-of-00010.parquet`.

    Without `shard_size`, the only split becomes the file `output`.
    """
    import pyarrow
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": [*contents.classes], "_type": "ClassLabel"}}
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema([("image", picture), ("label", pyarrow.int64())], metadata)
    for split in contents.splits:
        for number, count, rows in _shards(split, shard_size):
            name = f"data/{split.name}-{number:05d}-of-{count:05d}.parquet"
            with parquet.ParquetWriter(_shard_path(output, name, shard_size), schema) as writer:
                while block := [*itertools.islice(rows, BLOCK)]:
                    images = [{"bytes": png, "path": None} for _, png in block]
                    labels = [label for label, _ in block]
                    writer.write_table(pyarrow.table({"image": images, "label": labels}, schema))


def write_webdataset(output: Path, contents: Contents, shard_size: int | None) -> None:
    """Write tar files of `.png` and `.cls`, the label's number, as WebDataset reads them: `train-000000.tar`.

    Without `shard_size`, the only split becomes the file `output`.
    """
    for split in contents.splits:
        position = itertools.count()
        for number, _, rows in _shards(split, shard_size):
            path = _shard_path(output, f"{split.name}-{number:06d}.tar", shard_size)
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for label, png in rows:
                    key = f"{next(position):08d}"
                    _add(archive, f"{key}.png", png)
                    _add(archive, f"{key}.cls", str(label).encode())


@dataclass(frozen=True)
class Format:
    """A format: how it is written, and the suffix of its outputs that are one file."""

    write: Callable[..., None]
    """Takes the path, which does not exist, and the contents; with `sharded` also the images per shard, or None."""
    suffix: str = ""
    """Empty if an output is always a directory."""
    sharded: bool = False
    """Whether an output may be a directory of several files."""


FORMATS = {
    "npz": Format(write_npz, ".npz"),
    "idx": Format(write_idx),
    "png": Format(write_png),
    "parquet": Format(write_parquet, ".parquet", sharded=True),
    "webdataset": Format(write_webdataset, ".tar", sharded=True),
}


def _member(name: str) -> zipfile.ZipInfo:
    """A compressed array of an npz, with a fixed date."""
    member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(_member(name), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array)


def _pngs(split: Split) -> Iterator[tuple[int, bytes]]:
    """The label and the PNG of each image."""
    from service.codecs.png import png

    for label, image in zip(split.labels.tolist(), split.images, strict=True):
        yield label, png(image)


def _shards(split: Split, size: int | None) -> Iterator[tuple[int, int, Iterator[tuple[int, bytes]]]]:
    """For each shard its number, the number of all shards, and its rows; one shard if `size` is None."""
    rows = _pngs(split)
    size = size or len(split.labels)
    count = -(-len(split.labels) // size)
    for number in range(count):
        yield number, count, itertools.islice(rows, size)


def _shard_path(output: Path, name: str, size: int | None) -> Path:
    """The path of a shard in the directory `output`; `output` itself if there is only one."""
    if size is None:
        return output
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file, whose header has no date and no owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
