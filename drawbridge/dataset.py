"""A labelled data set, generated in parts that are saved, so that an interruption loses at most the unfinished parts.

Image i is a pure function of the seed and i, and its label is i modulo the number of classes. However often generation
was interrupted, the finished data set is the same.
"""

import asyncio
import json
import shutil
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drawbridge.client import Samples

PART_SIZE = 1000
"""Images in a part. One request generates one part."""
CONCURRENT_REQUESTS = 4
"""Requests at the same time, so that every worker has one."""
METADATA_FILE = "about.json"
MAX_IDX_CLASSES = 256
"""Labels that an idx file can tell apart: it has a byte for each."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class DatasetError(Exception):
    """The data set cannot be written to its output; the message says what to do."""


def _write_npz(output: Path, images: Images, labels: Labels, classes: Sequence[str]) -> None:
    """Write `images` uint8 [n, H, W] or [n, H, W, 3], `labels` int64 [n] and `classes`, their names."""
    temporary = output.with_name(f".{output.name}.new.npz")
    np.savez_compressed(temporary, images=images, labels=labels, classes=np.array(classes))
    temporary.replace(output)


def _write_idx(output: Path, images: Images, labels: Labels, split: str = "train") -> None:
    """Write MNIST's files of a split, `train` or `t10k`; torchvision.datasets.MNIST(root=output) reads both.

    `images` are uint8 [n, H, W]. The files have no place for the names of classes.
    """
    raw = output / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    image_file = struct.pack(">IIII", 2051, *images.shape) + images.tobytes()
    (raw / f"{split}-images-idx3-ubyte").write_bytes(image_file)
    label_file = struct.pack(">II", 2049, *labels.shape) + labels.astype(np.uint8).tobytes()
    (raw / f"{split}-labels-idx1-ubyte").write_bytes(label_file)


def _write_png(output: Path, images: Images, labels: Labels, classes: Sequence[str]) -> None:
    """Write a directory for each class, which torchvision.datasets.ImageFolder(output) reads."""
    from service.codecs.folders import folder_names
    from service.codecs.png import png

    folders = [output / name for name in folder_names(classes)]
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = folders[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.png").write_bytes(png(image))


FORMATS: dict[str, Callable[[Path, Images, Labels, Sequence[str]], None]] = {
    "npz": _write_npz,
    "idx": lambda output, images, labels, _: _write_idx(output, images, labels),
    "png": _write_png,
}


class Dataset:
    """A data set that is to be written to `output` in `format`, one of FORMATS. Its parts are beside it meanwhile."""

    def __init__(self, output: Path, format: str) -> None:
        self.output, self.format = output, format
        self.parts = output.with_name(f"{output.name}.parts")
        self.count = self.train = 0

    def begin(self, description: dict[str, Any], train: int, test: int = 0) -> None:
        """Start or continue a data set of `train` images, and in the format idx `test` more as the test split.

        Raises DatasetError where the output exists, or the parts have another description.
        """
        if self.output.exists():
            raise DatasetError(f"{self.output} exists already; remove it, or name another output")
        self.train, self.count = train, train + test
        metadata = json.dumps({**description, "count": self.count, "part": PART_SIZE}, indent=1) + "\n"
        self.parts.mkdir(parents=True, exist_ok=True)
        file = self.parts / METADATA_FILE
        if file.exists() and file.read_text() != metadata:
            raise DatasetError(f"{self.parts} is of a data set with other settings; remove it, or name another output")
        file.write_text(metadata)

    def missing(self) -> list[int]:
        """The index of the first image of each part that is not generated yet."""
        return [first for first in range(0, self.count, PART_SIZE) if not self._part(first).exists()]

    def generated(self) -> int:
        """The number of images that are generated."""
        missing = sum(min(PART_SIZE, self.count - first) for first in self.missing())
        return self.count - missing

    async def generate(self, request: Callable[..., Awaitable[Samples]]) -> None:
        """Generate the parts that are missing: `request` takes `first` and `n`."""
        semaphore = asyncio.Semaphore(CONCURRENT_REQUESTS)
        with tqdm(total=self.count, initial=self.generated(), unit=" images", smoothing=0.05) as progress:

            async def generate_part(first: int) -> None:
                async with semaphore:
                    samples = await request(first=first, n=min(PART_SIZE, self.count - first))
                    temporary = self._part(first).with_suffix(".new.npz")
                    temporary.write_bytes(samples.content)
                    temporary.replace(self._part(first))
                    progress.update(min(PART_SIZE, self.count - first))

            try:
                async with asyncio.TaskGroup() as group:
                    for first in self.missing():
                        group.create_task(generate_part(first))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None  # the others mostly repeat it

    def finish(self, classes: Sequence[str]) -> None:
        """Join the parts into the output, with the names of the classes, and remove them."""
        parts = [np.load(self._part(first)) for first in range(0, self.count, PART_SIZE)]
        images, labels = (np.concatenate([part[name] for part in parts]) for name in ("images", "labels"))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[self.format](self.output, images[: self.train], labels[: self.train], classes)
        if self.count > self.train:
            _write_idx(self.output, images[self.train :], labels[self.train :], "t10k")
        shutil.rmtree(self.parts)

    def _part(self, first: int) -> Path:
        return self.parts / f"{first:09d}.npz"
