"""How many images of each class a data set has, and in which order."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drawbridge.dataset import DatasetError

MAX_IMAGES = 10**8
"""Images of a data set; the order of more would not fit into memory."""
SMALLEST = (8, 8)
"""The height and width to which the images of `--like` are reduced."""


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """`total` images in the proportions of `weights`, by the largest remainders; ties go to the first class."""
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    first = sorted(range(len(weights)), key=lambda number: -remainders[number])
    for number in first[: total - sum(counts)]:
        counts[number] += 1
    return counts


def of_data(path: str, root: Path | None = None) -> dict[str, int]:
    """How many training images of each class the data at `path` has, by the names of its classes.

    `path` is what `drawbridge fit --data` takes. Needs the extra `training`. Raises DatasetError if it has no labels.
    """
    from training import data

    try:  # the smallest size, since only the labels count and pictures may be of any size
        loaded = data.load(path, root, options=data.Options(size=SMALLEST, held_out=0.0))
    except data.DataError as error:
        raise DatasetError(f"--like: {error}") from None
    counts = loaded.labels[loaded.labels >= 0].bincount(minlength=len(loaded.classes)).tolist()
    if not any(counts):
        raise DatasetError(f"--like: {path} has no labels")
    return dict(zip(loaded.classes, counts, strict=True))


def of_test_split(counts: Sequence[int], share: Fraction) -> list[int]:
    """The images of the test split: `share` times those for training, and at least one of a class that has images."""
    return [max(1, int(count * share)) if count and share else 0 for count in counts]


def check(counts: Sequence[int]) -> None:
    """Raise DatasetError for a data set without images, or with too many."""
    if not 1 <= sum(counts) <= MAX_IMAGES:
        raise DatasetError(f"a data set has 1 to {MAX_IMAGES:,} images; this one would have {sum(counts):,}")


def shuffled_labels(counts: Sequence[int], seed: int, split: int) -> NDArray[np.int64]:
    """The labels of all images of split number `split`, mixed in an order that the seed determines.

    The order is that of random words, because NumPy keeps the words of a bit generator the same in all versions, unlike
    its permutations.
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    words = np.random.Philox(key=[seed, split]).random_raw(len(labels))
    return labels[np.argsort(words, kind="stable")]
