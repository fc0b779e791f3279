"""A labelled data set, drawn in parts that are kept, so that an interruption costs no more than one of them.

Image i of a seed is a pure function, and its digit is i modulo their number: however often the drawing was broken off,
what comes out is the same.
"""

import asyncio
import json
import shutil
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drawbridge.client import Samples
from service.codecs.png import png

PART_SIZE = 1000
"""Images of a part, and of a request."""
CONCURRENT_REQUESTS = 4
"""Requests that are under way together, so that every worker has some."""
METADATA_FILE = "about.json"

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class DatasetError(Exception):
    """It cannot be made where it should be; the message says what to do."""


def _npz(output: Path, images: Images, labels: Labels) -> None:
    """`images` uint8 [n, 28, 28] and `labels` int64 [n]."""
    fresh = output.with_name(f".{output.name}.new.npz")
    np.savez_compressed(fresh, images=images, labels=labels)
    fresh.replace(output)


def _idx(output: Path, images: Images, labels: Labels) -> None:
    """MNIST's own files, as torchvision.datasets.MNIST(root=output) looks for them; the test split is empty."""
    raw = output / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", len(images)), ("t10k", 0)):
        pictures = struct.pack(">IIII", 2051, size, *images.shape[1:]) + images[:size].tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(pictures)
        digits = struct.pack(">II", 2049, size) + labels[:size].astype(np.uint8).tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(digits)


def _png(output: Path, images: Images, labels: Labels) -> None:
    """A directory for each digit, as torchvision.datasets.ImageFolder reads them."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = output / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.png").write_bytes(png(image))


FORMATS: dict[str, Callable[[Path, Images, Labels], None]] = {"npz": _npz, "idx": _idx, "png": _png}


class Dataset:
    """To be written to `output` in `form`, one of FORMATS."""

    def __init__(self, output: Path, form: str) -> None:
        self.output, self.form = output, form
        self.parts = output.with_name(f"{output.name}.parts")
        self.count = 0

    def begin(self, about: dict[str, Any], count: int) -> None:
        """`count` images of what is said `about` them. Raises DatasetError where others lie there."""
        if self.output.exists():
            raise DatasetError(f"{self.output} is there already; remove it, or name another")
        self.count = count
        told = json.dumps({**about, "count": count, "part": PART_SIZE}, indent=1) + "\n"
        self.parts.mkdir(parents=True, exist_ok=True)
        notes = self.parts / METADATA_FILE
        if notes.exists() and notes.read_text() != told:
            raise DatasetError(f"{self.parts} was begun with other settings; remove it, or name another output")
        notes.write_text(told)

    def missing(self) -> list[int]:
        """The first image of each part that is not drawn yet."""
        return [first for first in range(0, self.count, PART_SIZE) if not self._part(first).exists()]

    def kept(self) -> int:
        """How many images are drawn."""
        missing = sum(min(PART_SIZE, self.count - first) for first in self.missing())
        return self.count - missing

    async def draw(self, ask: Callable[..., Awaitable[Samples]]) -> None:
        """Draw the parts that are missing: `ask` takes `first` and `n`."""
        free = asyncio.Semaphore(CONCURRENT_REQUESTS)
        with tqdm(total=self.count, initial=self.kept(), unit=" images", smoothing=0.05) as bar:

            async def part(first: int) -> None:
                async with free:
                    drawn = await ask(first=first, n=min(PART_SIZE, self.count - first))
                    fresh = self._part(first).with_suffix(".new.npz")
                    np.savez(fresh, images=drawn.arrays, labels=drawn.labels)
                    fresh.replace(self._part(first))
                    bar.update(len(drawn.arrays))

            try:
                async with asyncio.TaskGroup() as group:
                    for first in self.missing():
                        group.create_task(part(first))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None  # the others are mostly the same

    def finish(self) -> None:
        """Put the parts together, and remove them."""
        parts = [np.load(self._part(first)) for first in range(0, self.count, PART_SIZE)]
        images, labels = (np.concatenate([part[name] for part in parts]) for name in ("images", "labels"))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[self.form](self.output, images, labels)
        shutil.rmtree(self.parts)

    def _part(self, first: int) -> Path:
        return self.parts / f"{first:09d}.npz"
