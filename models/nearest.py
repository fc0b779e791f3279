"""The training images nearest to an image: how far images are apart, and the index file that finds the nearest.

The index of a data set is one file, `weights/NAME-DIGEST.nearest`, in the safetensors format. It holds the images
themselves, so that the nearest ones can be shown.

The search is exact. Each point has a code: its K first principal components and the length of what they leave out. By
the triangle inequality, the distance of two codes is at most that of their points. The search therefore computes the
distances of the images whose codes are nearest, and ends where the next code is farther than the last result.
"""

import dataclasses
import hashlib
import json
import re
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from models.directories import NEAREST
from models.linear import PrincipalComponents

COMPARED_SIZE = 32
"""Pixels of a side to which larger images are reduced before they are compared."""
COMPONENTS = 48
"""Principal components in a code. MNIST's 60,000 codes take 5.9 MB, and a search then reads about 250 of the images."""
FORMAT = 1
"""Number of the file's format, which rises when it changes."""
IN_MEMORY = ("labels", "ends", "held_out", "mean", "directions", "codes")
"""Tensors that an open index holds; the others stay in the file."""
PART = 64
"""Images that the search reads at a time."""
ROWS = 8192
"""Codes that are compared at a time."""
TOLERANCE = 0.5
"""Upper bound of the rounding errors in the distance of two codes, besides those of float16; grey levels."""


class NearestError(Exception):
    """An index cannot be used. The message says which one, why, and what to do."""


def points(images: Tensor) -> Tensor:
    """Images [N, C, H, W] uint8 as points [N, D] float32, whose distance is that of the images.

    It is the Euclidean distance of pixels 0 to 255. Sides above COMPARED_SIZE are reduced by averaging: larger images
    would cost more time and memory, and differ in details that do not make them other pictures.
    """
    factor = -(-max(images.shape[2:]) // COMPARED_SIZE)
    if factor == 1:
        return images.flatten(1).float()
    parts = [F.avg_pool2d(part.float(), factor, ceil_mode=True).flatten(1) for part in images.split(64)]
    return torch.cat(parts)


@dataclass(frozen=True)
class Card:
    """What an index says about itself."""

    name: str
    """The name of the data."""
    digest: str
    """SHA-256 of the training images and labels, as in the manifests of models of this data."""
    shape: tuple[int, ...]
    """[C, H, W]."""
    images: int
    classes: tuple[str, ...]
    """The names of the labels by number; empty if there are none."""
    attribution: str
    """Source and licence of the images; may be empty."""
    near: float
    """An image that is at most this far from a training image may be a copy of it."""
    code_error: float
    """Upper bound of how far a code in the file is from the exact code."""
    format: int = FORMAT


class Neighbour(NamedTuple):
    """A training image near to another image."""

    number: int
    """Its place in the training images, from 0."""
    label: int
    """-1 if the image has none."""
    distance: float
    image: Tensor
    """[C, H, W] uint8."""


def path(root: Path, name: str, digest: str) -> Path:
    """The file of the index of a data set, below the directory of all weights."""
    safe = re.sub(r"[^\w.-]+", "-", name)
    return root / f"{safe}-{digest[:12]}{NEAREST}"


def build(images: Tensor, labels: Tensor, held_out: Tensor, near: float, **about: Any) -> bytes:
    """The file of an index of images [N, C, H, W] uint8 with labels [N].

    `held_out` [M] are the distances from images that were not trained on to their nearest training images; `near` and
    `about` are fields of the card.
    """
    all_points = points(images)
    components = PrincipalComponents(all_points.shape[1], min(COMPONENTS, all_points.shape[1]))
    components.fit(all_points)
    codes = torch.cat([_codes(components.mean, components.W, part) for part in all_points.split(ROWS)])
    rounded = codes.half()
    card = Card(
        shape=tuple(images.shape[1:]), images=len(images), near=near,
        code_error=float((rounded.float() - codes).norm(dim=1).max()), **about,
    )  # fmt: skip
    files = [zlib.compress(image.numpy().tobytes(), 9) for image in images]
    tensors = {
        "labels": labels.to(torch.int64),
        "ends": torch.tensor([len(file) for file in files]).cumsum(0),
        "held_out": held_out.double().sort().values,
        "mean": components.mean,
        "directions": components.W,
        "codes": rounded,
        "files": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8),
    }
    text = json.dumps(dataclasses.asdict(card), sort_keys=True)
    data = safetensors.torch.save(tensors)
    digest = hashlib.sha256(text.encode() + data[_data_start(data[:8]) :]).hexdigest()
    return safetensors.torch.save(tensors, metadata={"card": text, "digest": digest})


class NearestIndex:
    """The index in a file, which stays open; the images stay on disk until a search reads them.

    Raises NearestError if the file is missing, damaged, or of another version.
    """

    def __init__(self, file: Path) -> None:
        self.path, self.lock = file, threading.Lock()
        try:
            self.file = file.open("rb", buffering=0)
        except OSError as error:
            raise NearestError(f"{file}: {error.strerror}") from None
        weakref.finalize(self, self.file.close)
        try:
            self._load()
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged(" ".join(str(error).split())) from None

    def _load(self) -> None:
        with safetensors.safe_open(self.path, "pt") as opened:
            metadata = opened.metadata()
            card = json.loads(metadata["card"])
            if card["format"] != FORMAT:
                raise ValueError(f"it has format {card['format']}, this version reads {FORMAT}")
            # Clones, since the tensors are a memory map, which a change of the file would change or break.
            tensors = {name: opened.get_tensor(name).clone() for name in IN_MEMORY}
        start = _data_start(self.file.read(8))
        header = json.loads(self.file.read(start - 8))
        digest = hashlib.sha256(metadata["card"].encode())
        while part := self.file.read(1 << 20):
            digest.update(part)
        if digest.hexdigest() != metadata["digest"]:
            raise ValueError("its digest is another")
        self.card = Card(**{**card, "shape": tuple(card["shape"]), "classes": tuple(card["classes"])})
        self.labels, self.held_out = tensors["labels"].numpy(), tensors["held_out"].numpy()
        self.mean, self.directions, self.codes = tensors["mean"], tensors["directions"], tensors["codes"]
        self.places = np.concatenate(([0], tensors["ends"].numpy())) + start + header["files"]["data_offsets"][0]
        """Where the bytes of image i begin, and, at i + 1, end."""

    def search(self, image: Tensor, count: int, cancelled: threading.Event | None = None) -> list[Neighbour]:
        """The `count` training images nearest to an image [C, H, W] uint8, nearest first; by number where equally near.

        Raises CancelledError if it was `cancelled` meanwhile, and NearestError if the file was damaged since it was
        opened.
        """
        point = points(image[None])
        bounds = self._lower_bounds(point).numpy()
        order = bounds.argsort()
        numbers, distances = np.empty(0, np.int64), np.empty(0)
        for first in range(0, len(order), PART):
            if cancelled is not None and cancelled.is_set():
                raise CancelledError
            if len(distances) == count and bounds[order[first]] > distances[-1]:
                break
            part = order[first : first + PART]
            differences = points(self.images(part)).double() - point.double()
            numbers = np.concatenate((numbers, part))
            distances = np.concatenate((distances, differences.square().sum(1).sqrt().numpy()))
            nearest = np.lexsort((numbers, distances))[:count]
            numbers, distances = numbers[nearest], distances[nearest]
        found = zip(numbers.tolist(), self.labels[numbers].tolist(), distances.tolist(), strict=True)
        return [Neighbour(*one, image) for one, image in zip(found, self.images(numbers), strict=True)]

    def images(self, numbers: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """The training images [n, C, H, W] uint8 with these numbers."""
        size = int(np.prod(self.card.shape))
        content = b"".join(self._decompressed(numbers, size))
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, *self.card.shape)

    def farther_share(self, distance: float) -> float:
        """The share of held-out images that are farther from their nearest training image than `distance`."""
        return float((self.held_out > distance).mean())

    def _decompressed(self, numbers: Sequence[int] | NDArray[np.int64], size: int) -> Iterator[bytes]:
        with self.lock:
            for number in numbers:
                start, end = self.places[number : number + 2]
                try:
                    self.file.seek(start)
                    image = zlib.decompress(self.file.read(end - start))
                except (zlib.error, OSError) as error:
                    raise self._damaged(str(error)) from None
                if len(image) != size:
                    raise self._damaged("an image has another size")
                yield image

    def _lower_bounds(self, point: Tensor) -> Tensor:
        """For each training image a distance [N] that it is at least away from a point [1, D]."""
        code = _codes(self.mean, self.directions, point)
        parts = [
            torch.cdist(code, part.float(), compute_mode="donot_use_mm_for_euclid_dist")[0]
            for part in self.codes.split(ROWS)
        ]
        return torch.cat(parts) - (self.card.code_error + TOLERANCE)

    def _damaged(self, why: str) -> NearestError:
        return NearestError(f"{self.path} is no usable index ({why}); write it again with `drawbridge nearest MODEL`")


def _codes(mean: Tensor, directions: Tensor, x: Tensor) -> Tensor:
    """Points [N, D] -> codes [N, K + 1]: the components along K `directions` [D, K], and the length of the rest."""
    centred = x - mean
    components = centred @ directions
    rest = (centred - components @ directions.T).norm(dim=1, keepdim=True)
    return torch.cat((components, rest), dim=1)


def _data_start(head: bytes) -> int:
    """Where the tensors begin in a file of safetensors with these first bytes: after 8 bytes of length and a header."""
    return 8 + int.from_bytes(head[:8], "little")
