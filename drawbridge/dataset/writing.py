"""Writes a finished data set: its files and its card appear together, or not at all."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drawbridge.dataset import card as data_card
from drawbridge.dataset.formats import Contents, Format, Image, Split
from drawbridge.dataset.parts import Parts

CARD_JSON, CARD_MARKDOWN = "card.json", "README.md"
"""The card in a directory; that of a file NAME is beside it, in NAME.card.json and NAME.card.md."""


class HashedSplit:
    """The images of a split, which are hashed while they are read."""

    def __init__(self, labels: NDArray[np.int64], images: Iterable[Image]) -> None:
        self.labels, self.images, self.hash = labels, images, hashlib.sha256()

    def __iter__(self) -> Iterator[Image]:
        for image in tqdm(self.images, "writing", len(self.labels), unit=" images", leave=False):
            self.hash.update((image if image.ndim == 2 else image.transpose(2, 0, 1)).tobytes())
            yield image

    def digest(self) -> str:
        """SHA-256 of the images' bytes [N, C, H, W], followed by the labels': what training calls the data's digest."""
        self.hash.update(self.labels.tobytes())
        return self.hash.hexdigest()


def write(
    output: Path,
    format: Format,
    shard_size: int | None,
    parts: Parts,
    labels: dict[str, NDArray[np.int64]],
    classes: Sequence[str],
    shape: tuple[int, ...],
    card: dict[str, Any],
) -> None:
    """Write the images of `parts` and the card to `output`, and delete the parts.

    `labels` are those of each split, in the order of the images. `shard_size` is None for formats without shards and
    for a single file.
    """
    new = output.with_name(f".{output.name}.new")
    _remove(new)
    output.parent.mkdir(parents=True, exist_ok=True)
    if not format.suffix or shard_size:
        new.mkdir()
    skipped, splits = [0] * len(classes), dict[str, HashedSplit]()
    for name, of_split in labels.items():
        splits[name] = HashedSplit(of_split, parts.images(of_split, skipped))
        skipped = [
            before + here for before, here in zip(skipped, np.bincount(of_split, minlength=len(classes)), strict=True)
        ]
    contents = Contents([Split(name, one.labels, one) for name, one in splits.items()], classes, shape)
    format.write(new, contents, *([shard_size] if format.sharded else []))
    card = {**card, "sha256": {name: one.digest() for name, one in splits.items()}}
    for path, text in _card_files(output, new, card).items():
        path.write_text(text, encoding="utf-8")
    new.rename(output)
    parts.remove()


def _card_files(output: Path, new: Path, card: dict[str, Any]) -> dict[Path, str]:
    """The texts of the card by their paths: in the directory `new`, or beside the file `output`."""
    if new.is_dir():
        return {
            new / CARD_JSON: data_card.to_json(card),
            new / CARD_MARKDOWN: data_card.to_markdown(card, head=True),
        }
    return {
        output.with_name(f"{output.name}.card.json"): data_card.to_json(card),
        output.with_name(f"{output.name}.card.md"): data_card.to_markdown(card, head=False),
    }


def _remove(path: Path) -> None:
    """Delete what an interrupted attempt left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
