"""Images [n, 28, 28] uint8 as files."""

import base64
import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidParameter, NotAcceptable

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What goes into a file."""

    images: Images
    """[n, 28, 28]."""
    labels: NDArray[np.int64]
    """[n], -1 where there is none."""
    about: dict[str, Any]
    """`model`, `seed` and whatever else tells how to draw it again."""
    errors: NDArray[np.float64] | None = None
    """[n], of images that are to be like others: the mean squared difference of their pixels, in [0, 1]."""


@dataclass(frozen=True)
class Codes:
    """The codes of images."""

    codes: NDArray[np.float32]
    """[n, *S]."""
    about: dict[str, Any]
    """`model`, `digest`, `shape`."""


T = TypeVar("T")


@dataclass(frozen=True)
class Format(Generic[T]):
    """A way to write images, or codes."""

    name: str
    media_type: str
    encode: Callable[[T], bytes]


def png(image: Images) -> bytes:
    """[H, W] as PNG. Level 1: at 28x28 the higher ones save 3 % of the bytes and double the time."""
    return _file(Image.fromarray(image), "PNG", compress_level=1)


def grid(images: Images, columns: int | None = None) -> Images:
    """[n, H, W] as one image, row by row, as near to a square as n allows; what is left of the last row stays black."""
    n, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _zip(drawn: Drawn) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:  # PNG is compressed already
        for i, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
            name = f"{i:05d}.png" if label < 0 else f"{i:05d}_{label}.png"
            # A fixed date: the same draw is the same bytes.
            file.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), png(image))
    return buffer.getvalue()


def _npz(drawn: Drawn) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"images": drawn.images, "labels": drawn.labels}
    if drawn.errors is not None:
        arrays["errors"] = drawn.errors
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _json(drawn: Drawn) -> bytes:
    items: list[dict[str, Any]] = [
        {"label": int(label), "png": base64.b64encode(png(image)).decode()}
        for image, label in zip(drawn.images, drawn.labels, strict=True)
    ]
    for item, error in zip(items, () if drawn.errors is None else drawn.errors, strict=False):
        item["error"] = float(error)
    return json.dumps({**drawn.about, "images": items}).encode()


def _codes_npz(codes: Codes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, codes=codes.codes)
    return buffer.getvalue()


def _codes_json(codes: Codes) -> bytes:
    return json.dumps({**codes.about, "codes": codes.codes.tolist()}).encode()


def _animation(kind: str) -> Callable[[Drawn], bytes]:
    """There and back, a quarter of a second a frame at the ends and less between."""

    def encode(drawn: Drawn) -> bytes:
        frames = [Image.fromarray(image) for image in (*drawn.images, *drawn.images[-2:0:-1])]
        durations = [120] * len(frames)
        durations[0] = durations[len(drawn.images) - 1] = 480
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        first, *rest = frames
        return _file(first, kind, save_all=True, append_images=rest, duration=durations, loop=0, **options)

    return encode


_PACKED: tuple[Format[Drawn], ...] = (
    Format("zip", "application/zip", _zip),
    Format("npz", "application/x-npz", _npz),
    Format("json", "application/json", _json),
)
STILLS: tuple[Format[Drawn], ...] = (
    Format("png", "image/png", lambda drawn: png(grid(drawn.images))),
    Format("webp", "image/webp", lambda drawn: _file(Image.fromarray(grid(drawn.images)), "WEBP", lossless=True)),
    *_PACKED,
)
"""How /generate can answer: one image as it is, several as a grid, or each by itself in a package."""
FRAMES: tuple[Format[Drawn], ...] = (
    Format("png", "image/png", lambda drawn: png(grid(drawn.images, len(drawn.images)))),
    Format("gif", "image/gif", _animation("GIF")),
    Format("webp", "image/webp", _animation("WEBP")),
    *_PACKED,
)
"""How /interpolate can answer: a strip, an animation, or frames."""


CODES: tuple[Format[Codes], ...] = (
    Format("json", "application/json", _codes_json),
    Format("npz", "application/x-npz", _codes_npz),
)
"""How /encode can answer."""


def choose(formats: Sequence[Format[T]], name: str | None, accept: str | None) -> Format[T]:
    """The format called `name`, else the one that the Accept header likes best (RFC 9110, 12.5.1), else the first.

    Raises InvalidParameter or NotAcceptable with what there is.
    """
    names = [format_.name for format_ in formats]
    if name is not None:
        if name not in names:
            raise InvalidParameter(f"format: no {name!r} here; there are: {', '.join(names)}", formats=names)
        return formats[names.index(name)]
    if not accept:
        return formats[0]
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    quality, _, chosen = max(
        ((_quality(format_.media_type, ranges), -i, format_) for i, format_ in enumerate(formats)),
        key=lambda item: item[:2],
    )
    if quality <= 0:
        kinds = [format_.media_type for format_ in formats]
        raise NotAcceptable(f"Accept one of {', '.join(kinds)}, or name a format", media_types=kinds)
    return chosen


def _media_range(part: str) -> tuple[str, float]:
    kind, *options = (piece.strip().lower() for piece in part.split(";"))
    for option in options:
        if option.startswith("q="):
            try:
                return kind, float(option[2:])
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The q of the most specific range that covers `media_type`; 0 where none does."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        for kind, quality in ranges:
            if kind == pattern:
                return quality
    return 0.0


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
