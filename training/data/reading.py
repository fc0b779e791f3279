"""Pictures of any size brought to one shape, by all cores."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from tqdm import tqdm

from models import parallel
from models.cores import available_cores
from pictures.decoding import Pixels, UnreadablePicture, decode
from pictures.fitting import fit
from training.data import cache
from training.data.dataset import DataError, Options, check_size

MAX_PIXELS = 2**27
"""Pixels of the largest picture; decoding takes up to 17 bytes for each."""
VERSION = 1
"""Of this reader: a higher number makes cached pictures be read anew."""
NAMED_FAILURES = 5
"""Unreadable files that a message names."""

Images = NDArray[np.uint8]
"""[N, C, H, W]."""
Source = Callable[[int], bytes | Path]
"""Gives the file of a picture's number."""


def read_pictures(
    place: object, names: Sequence[str], source: Source, options: Options, identity: Any
) -> tuple[Images, list[int]]:
    """Decode the pictures called `names`, whose files `source` gives, and bring them to one shape.

    Returns the images, and the numbers of the pictures that they show: all, but with `skip_unreadable` those that can
    be decoded. `identity`, which JSON can hold, stands for the content of all files: it finds the images of an earlier
    call in the cache. `place` is what messages name. Raises DataError for unreadable files, and for several sizes
    without `size`.
    """
    entry = cache.key(
        VERSION, PIL.__version__, identity, options.size, options.channels, options.resize, options.background
    )
    cached = cache.load(entry)
    if cached is None:
        images, failures = _decode_all(place, names, source, options)
        if not failures or options.skip_unreadable:
            reasons = np.array(list(failures.values()), np.str_)
            cache.save(entry, {"images": images, "failed": np.array(list(failures), np.int64), "reasons": reasons})
    else:
        images = cached["images"]
        failures = dict(zip(cached["failed"].tolist(), cached["reasons"].tolist(), strict=True))
    if failures:
        _report(place, names, failures, options)
    return images, [number for number in range(len(names)) if number not in failures]


def fit_arrays(place: object, images: Images, options: Options) -> Images:
    """Bring images [N, C, H, W] to the size and the channels of `options`. Raises DataError if they need a size."""
    channels, height, width = options.channels or images.shape[1], *(options.size or images.shape[2:])
    check_size(place, height, width)
    if images.shape[1:] == (channels, height, width):
        return images
    fitted = np.empty((len(images), channels, height, width), np.uint8)

    def fit_one(number: int) -> None:
        pixels = (
            images[number, 0]
            if len(images[number]) == 1
            else np.ascontiguousarray(images[number].swapaxes(0, 2).swapaxes(0, 1))
        )
        _store(fitted, number, pixels, options)

    _for_all(fit_one, len(images), "resizing")
    return fitted


def identify(file: Path) -> tuple[str, int, int]:
    """What stands for the content of a file: its path, size and time of change. To read all files would be slow."""
    try:
        status = file.stat()
    except OSError:  # a broken link, which decoding reports
        return str(file), 0, 0
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def note(message: str) -> None:
    """Print a message about the data; of several processes that train together, only the first does."""
    if parallel.rank() == 0:
        print(message, file=sys.stderr, flush=True)


def _decode_all(place: object, names: Sequence[str], source: Source, options: Options) -> tuple[Images, dict[int, str]]:
    """The images of all readable pictures, and why each of the others, by number, is not readable."""
    height, width = options.size or _first_size(place, names, source)
    channels = options.channels or 3
    images = np.empty((len(names), channels, height, width), np.uint8)
    failures: dict[int, str] = {}

    def read_one(number: int) -> None:
        try:
            pixels = decode(
                source(number), channels=options.channels, background=options.background, max_pixels=MAX_PIXELS
            )
        except (UnreadablePicture, OSError) as error:
            failures[number] = getattr(error, "strerror", None) or str(error)
            return
        if options.size is None and pixels.shape[:2] != (height, width):
            raise DataError(
                f"{place}: its images have several sizes ({height}x{width}, {pixels.shape[0]}x{pixels.shape[1]} "
                f"{names[number]}); give --size N or --size HxW"
            )
        _store(images, number, pixels, options)

    _for_all(read_one, len(names), "reading pictures")
    if failures:
        images = np.delete(images, list(failures), axis=0)
    if options.channels is None and (images == images[:, :1]).all():
        images = np.ascontiguousarray(images[:, :1])
    return images, dict(sorted(failures.items()))


def _first_size(place: object, names: Sequence[str], source: Source) -> tuple[int, int]:
    """The height and width of the first readable picture. Raises DataError if networks do not take them."""
    for number in range(len(names)):
        try:
            height, width = decode(source(number), max_pixels=MAX_PIXELS).shape[:2]
        except (UnreadablePicture, OSError):
            continue
        check_size(place, height, width)
        return height, width
    raise DataError(
        f"{place}: none of its {len(names)} pictures can be read; the formats may be others than their names say"
    )


def _store(images: Images, number: int, pixels: Pixels, options: Options) -> None:
    """Bring pixels [H, W] or [H, W, 3] to the shape of the images [N, C, H, W], and write them there."""
    channels, height, width = images.shape[1:]
    fitted = fit(pixels, height, width, channels, resize=options.resize, background=options.background)
    images[number] = fitted if fitted.ndim == 2 else fitted.transpose(2, 0, 1)


def _for_all(function: Callable[[int], None], count: int, title: str) -> None:
    """Call `function` for the numbers below `count` on as many threads as there are cores; Pillow uses no GIL."""
    pool = ThreadPoolExecutor(available_cores())
    try:
        silent = True if parallel.rank() else None  # None: silent unless stderr is a terminal
        for _ in tqdm(pool.map(function, range(count)), title, count, disable=silent, leave=False):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _report(place: object, names: Sequence[str], failures: dict[int, str], options: Options) -> None:
    """Print which files are left out. Raises DataError if none may be, or none are left."""
    named = "; ".join(f"{names[number]}: {failures[number]}" for number in list(failures)[:NAMED_FAILURES])
    more = "" if len(failures) <= NAMED_FAILURES else f"; and {len(failures) - NAMED_FAILURES} more"
    summary = f"{place}: {len(failures)} of {len(names)} pictures cannot be read ({named}{more})"
    if not options.skip_unreadable or len(failures) == len(names):
        raise DataError(f"{summary}; repair or remove them, or leave them out with --skip-unreadable")
    note(f"warning: {summary}; they are left out")
