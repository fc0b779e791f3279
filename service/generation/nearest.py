"""Which training images are nearest to an image, and whether it is a copy of one."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.directories import NEAREST, list_indexes
from models.nearest import NearestError, NearestIndex, Neighbour
from service.engine.catalog import Model
from service.errors import NoIndex, QueueIsFull

MAX_SEARCHES = 32
"""Searches that run or wait in a process."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The training images nearest to an image, nearest first, and what follows from them."""

    neighbours: list[Neighbour]
    nearer_than: float
    """The share of held-out images that are farther from their nearest training image than the image is."""
    copied: bool
    """Whether the image is a training image, or as near to one as the nearest 1 % of the held-out images."""
    sentence: str
    """The same in words."""


class NearestImages:
    """The indexes of training images under `root`, and the thread that searches them, with `threads` per operation."""

    def __init__(self, root: Path, threads: int) -> None:
        self.root = root
        self.files: dict[Path, NearestIndex] = {}
        self.broken: dict[str, str] = {}
        """Why a file is not used in its current form, by name."""
        self.searches = 0
        """Those that run or wait."""
        self.thread = ThreadPoolExecutor(1, "nearest", torch.set_num_threads, (threads,))
        """Searches one index at a time, which bounds the memory."""

    def scan(self) -> None:
        """Open the indexes that are there now. One that is damaged replaces none that was intact."""
        files, broken = dict[Path, NearestIndex](), dict[str, str]()
        for path in list_indexes(self.root):
            try:
                files[path] = NearestIndex(path)
            except NearestError as error:
                broken[path.name] = str(error)
                log.error("an index of training images is not used: %s", error)
                if path in self.files:
                    files[path] = self.files[path]
        self.files, self.broken = files, broken

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue of searches. Raises QueueIsFull."""
        if self.searches == MAX_SEARCHES:
            raise QueueIsFull(
                f"{MAX_SEARCHES} searches for training images are waiting; try again in 1 s",
                headers={"Retry-After": "1"}, retry_after=1,
            )  # fmt: skip
        self.searches += 1
        try:
            yield
        finally:
            self.searches -= 1

    def has(self, model: Model) -> bool:
        """Whether there is an index of the model's training images."""
        return self._get(model) is not None

    def find(self, model: Model) -> NearestIndex:
        """The index of the model's training images. Raises NoIndex."""
        index = self._get(model)
        if index is not None:
            return index
        data = Path(str(model.manifest.dataset.get("name"))).name
        ending = f"-{model.manifest.dataset.get('digest', '')[:12]}{NEAREST}"
        reasons = "".join(f" ({reason})" for name, reason in self.broken.items() if name.endswith(ending))
        raise NoIndex(
            f"there is no index of {data}, the training images of {model.name}{reasons}: write one into the directory "
            f"of the weights with `drawbridge nearest {model.name}`, and reload the service"
        )

    def _get(self, model: Model) -> NearestIndex | None:
        digest, shape = model.manifest.dataset.get("digest"), model.manifest.data_shape
        matching = (index for index in self.files.values() if (index.card.digest, index.card.shape) == (digest, shape))
        return next(matching, None)


def search(index: NearestIndex, image: Tensor, count: int, cancelled: threading.Event) -> Found:
    """The `count` training images nearest to an image [C, H, W] uint8. Raises NoIndex, and CancelledError."""
    try:
        neighbours = index.search(image, count, cancelled)
    except NearestError as error:
        raise NoIndex(str(error)) from None
    nearest = neighbours[0]
    share, copied = index.farther_share(nearest.distance), nearest.distance <= index.card.near
    return Found(neighbours, share, copied, _sentence(image, nearest, len(index.held_out), share, copied))


def _sentence(image: Tensor, nearest: Neighbour, held_out: int, share: float, copied: bool) -> str:
    """Whether an image is a copy of the training image that is nearest to it."""
    if torch.equal(nearest.image, image):
        return f"Copied: it equals training image {nearest.number} in every pixel."
    count = f"{held_out:,} held-out images"
    nearer = f"all {count} are to theirs" if share == 1 else f"{100 * share:.3g} % of {count} are to theirs"
    found = f"it is nearer to training image {nearest.number} than {nearer}"
    if copied:
        return f"Perhaps copied: {found}. Of images that are no copies, 1 % are as near."
    return f"Not copied: {found}; a copy is nearer than 99 % of them."
