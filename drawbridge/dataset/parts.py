"""The parts in which a data set is drawn: files beside the output until it is written, and which part is drawn next.

A part is up to PART_SIZE consecutive images of one class. Its file holds the verdict on each image and the images that
are kept. A class uses the first images that the filters keep, in the order of their numbers, so it does not matter in
which order, or how often beyond what is needed, its parts are drawn.
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drawbridge.dataset import DatasetError
from models.locks import Locked, locked

PART_SIZE = 128
"""Images in a part, which is one request: what the strictest service takes (`drawbridge serve --class`)."""
MIN_FILTERED_PART = 16
"""Images in a part that filters judge, if fewer are wanted."""
IMAGES_PER_CLASS = 2**32
"""Image j of class c is image c * IMAGES_PER_CLASS + j of the seed."""
MIN_DRAWN = 1000
"""Images of a class that are drawn before it can count as impossible to fill."""
DESCRIPTION_FILE = "about.json"

Images = NDArray[np.uint8]
"""[n, H, W], or [n, H, W, 3] in colour."""


@dataclass(frozen=True)
class Part:
    """Consecutive images of one class."""

    label: int
    number: int
    first: int
    """The number, within the class, of its first image."""
    n: int

    @property
    def first_image(self) -> int:
        """The number, within the seed, of its first image."""
        return self.label * IMAGES_PER_CLASS + self.first


class ClassParts:
    """The parts of one class, of whose images `wanted` are to be kept."""

    def __init__(self, label: int, wanted: int, filtered: bool, max_tries: int) -> None:
        self.label, self.wanted, self.filtered, self.max_tries = label, wanted, filtered, max_tries
        self.size = min(PART_SIZE, max(MIN_FILTERED_PART, wanted)) if filtered else PART_SIZE
        self.kept: dict[int, int] = {}
        """The images that are kept of each part that is drawn, by the part's number."""
        self.in_flight: set[int] = set()
        self.complete = self.complete_kept = 0
        """The number of parts before the first one that is missing, and of the images that are kept of them."""

    def part(self, number: int) -> Part:
        first = number * self.size
        return Part(self.label, number, first, self.size if self.filtered else min(self.size, self.wanted - first))

    @property
    def is_filled(self) -> bool:
        return self.complete_kept >= self.wanted

    def next_part(self) -> Part | None:
        """The part to draw now; None if those in flight are expected to suffice.

        A gap between parts is always filled: an earlier part counts before a later one.
        """
        if self.is_filled:
            return None
        known = self.kept.keys() | self.in_flight
        number = next(number for number in itertools.count(self.complete) if number not in known)
        kept, drawn = sum(self.kept.values()), len(self.kept) * self.size
        rate = max(kept / drawn, 1 / self.max_tries) if self.filtered and drawn else 1.0
        expected = kept + len(self.in_flight) * self.size * rate
        is_gap = number < max(known, default=0)
        return self.part(number) if is_gap or expected < self.wanted else None

    def add(self, number: int, kept: int) -> None:
        """Count a part that is drawn. Raises ImpossibleClass if images are kept too rarely, so far in their order."""
        self.in_flight.discard(number)
        self.kept[number] = kept
        while self.complete in self.kept and not self.is_filled:
            self.complete_kept += self.kept[self.complete]
            self.complete += 1
            drawn = self.complete * self.size
            is_rare = self.filtered and drawn >= MIN_DRAWN and self.complete_kept * self.max_tries < drawn
            if is_rare and not self.is_filled:
                raise ImpossibleClass(self.label, self.complete_kept, drawn)


class ImpossibleClass(Exception):
    """Too few images of a class pass the filters: its number, how many images were kept, and of how many."""

    def __init__(self, label: int, kept: int, drawn: int) -> None:
        super().__init__(label, kept, drawn)
        self.label, self.kept, self.drawn = label, kept, drawn


class Parts:
    """All parts of a data set, in the directory `folder`."""

    def __init__(self, folder: Path, wanted: Sequence[int], filtered: bool = False, max_tries: int = 1) -> None:
        self.folder, self.wanted = folder, wanted
        self._lock = ExitStack()
        self.classes = [ClassParts(label, count, filtered, max_tries) for label, count in enumerate(wanted)]

    def begin(self, description: dict[str, Any]) -> None:
        """Create the directory, or continue with its parts; other processes cannot, until `close` or `remove`.

        Raises DatasetError if another process draws them or if they have another description, and ImpossibleClass.
        """
        text = json.dumps({**description, "part": PART_SIZE}, indent=1) + "\n"
        try:
            self._lock.enter_context(locked(self.folder))
        except Locked as error:
            raise DatasetError(f"{error}; wait until it ends, or name another output") from None
        file = self.folder / DESCRIPTION_FILE
        if file.exists() and file.read_text() != text:
            raise DatasetError(f"{self.folder} is of a data set with other settings; remove it, or name another output")
        temporary = file.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(file)
        for path in sorted(self.folder.glob("*.part")):
            label, number = map(int, path.stem.split("-"))
            verdicts = read_verdicts(path)
            if verdicts is not None:
                self.classes[label].add(number, int((verdicts == 0).sum()))

    @property
    def finished(self) -> bool:
        return all(one.is_filled for one in self.classes)

    @property
    def count(self) -> int:
        """Images that the data set has when it is finished."""
        return sum(self.wanted)

    @property
    def kept(self) -> int:
        """Images that the data set has so far."""
        return sum(min(sum(one.kept.values()), one.wanted) for one in self.classes)

    def take(self) -> Part | None:
        """The part to draw next; None if those in flight are expected to suffice."""
        for one in self.classes:
            if part := one.next_part():
                one.in_flight.add(part.number)
                return part
        return None

    def give_back(self, part: Part) -> None:
        """Let a part be drawn by another service."""
        self.classes[part.label].in_flight.discard(part.number)

    def save(self, part: Part, verdicts: NDArray[np.uint8], images: Images) -> None:
        """Write a part: the verdict on each of its images, 0 for one to keep, and the images."""
        path = self._path(part.label, part.number)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            np.save(file, verdicts)
            np.save(file, images[verdicts == 0])
        temporary.replace(path)

    def add(self, part: Part, verdicts: NDArray[np.uint8]) -> None:
        """Count a part that is saved. Raises ImpossibleClass."""
        self.classes[part.label].add(part.number, int((verdicts == 0).sum()))

    def images(self, labels: NDArray[np.int64], skipped: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Images of these labels in this order, after the first `skipped` of each class."""
        readers = {
            one.label: itertools.islice(self._kept_images(one), skipped[one.label], None) for one in self.classes
        }
        for label in labels.tolist():
            yield next(readers[label])

    def dropped(self, label: int, filters: int) -> tuple[int, list[int]]:
        """How many images of a class were drawn until it was filled, and how many of these each filter dropped."""
        one = self.classes[label]
        read = (read_verdicts(self._path(label, number)) for number in range(one.complete))
        verdicts = np.concatenate([found for found in read if found is not None] or [np.zeros(0, np.uint8)])
        drawn = int(np.flatnonzero(verdicts == 0)[one.wanted - 1]) + 1 if one.wanted else 0
        return drawn, np.bincount(verdicts[:drawn], minlength=filters + 1)[1:].tolist()

    def close(self) -> None:
        """Let another process continue with the parts."""
        self._lock.close()

    def remove(self) -> None:
        """Delete all parts."""
        self.close()
        shutil.rmtree(self.folder)

    def _kept_images(self, one: ClassParts) -> Iterator[NDArray[np.uint8]]:
        for number in range(one.complete):
            yield from read_images(self._path(one.label, number))

    def _path(self, label: int, number: int) -> Path:
        return self.folder / f"{label:05d}-{number:07d}.part"


def read_verdicts(path: Path) -> NDArray[np.uint8] | None:
    """The verdicts in a part's file; None if the file is damaged, so that the part must be drawn again."""
    try:
        with path.open("rb") as file:
            verdicts: NDArray[np.uint8] = np.load(file)
            shape, _, dtype = _read_header(file)
            size = int(np.prod(shape)) * dtype.itemsize
            is_whole = path.stat().st_size == file.tell() + size and shape[0] == (verdicts == 0).sum()
    except (OSError, ValueError, EOFError):
        return None
    return verdicts if is_whole else None


def read_images(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The images in a part's file, read one at a time: a data set has a part of each of its classes in use."""
    with path.open("rb") as file:
        np.load(file)
        shape, _, dtype = _read_header(file)
        start = file.tell()
    size = int(np.prod(shape[1:]))
    for number in range(shape[0]):
        yield np.fromfile(path, dtype, size, offset=start + number * size).reshape(shape[1:])


def _read_header(file: Any) -> Any:
    """The shape, order and type of the array that follows in an open file (numpy.lib.format, version 1.0)."""
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)
