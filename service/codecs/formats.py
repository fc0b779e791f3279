"""Response formats, and their negotiation."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.pixels import image_grid
from service.codecs.archives import NpzEncoder, ZipEncoder
from service.codecs.png import Images, png
from service.codecs.recipe import Recipe
from service.codecs.streams import Contents, EventEncoder, JsonEncoder, StreamEncoder
from service.errors import InvalidParameter, NotAcceptable

FRAME_MS, END_FRAME_MS = 120, 480
"""How long an animation shows a frame, and its first and last one."""


class ImageBatch(NamedTuple):
    """Images to encode into one file."""

    images: Images
    """[n, H, W], or [n, H, W, 3] in colour."""
    labels: NDArray[np.int64]
    """[n], -1 for no label."""
    metadata: dict[str, Any]
    """`model`, `seed` and what else is needed to reproduce the images."""
    errors: NDArray[np.float64] | None = None
    """[n], of reconstructions: the mean squared difference of pixels in [0, 1]."""
    classes: tuple[str, ...] = ()
    """The names of the labels by number; empty if the model takes no label."""
    recipe: Recipe | None = None
    """What PNGs say about how they were made; None if no request to /generate makes them."""

    @property
    def contents(self) -> Contents:
        """What a file of these images holds."""
        return Contents(len(self.images), self.images.shape[1:], self.classes, self.metadata, self.recipe)


@dataclass(frozen=True)
class Codes:
    """Latent codes to encode into one file."""

    codes: NDArray[np.float32]
    """[n, *S]."""
    metadata: dict[str, Any]
    """`model`, `digest`, `shape`."""


T = TypeVar("T")


@dataclass(frozen=True)
class Format(Generic[T]):
    """A file format for images or codes."""

    name: str
    media_type: str
    encode: Callable[[T], bytes]
    stream_encoder: Callable[[Contents], StreamEncoder] | None = None
    """Makes an encoder, if the format can be streamed."""
    revision: int = 1
    """Incremented when the same images give other bytes. ETags cover it."""

    @cached_property
    def content_type(self) -> bytes:
        """The Content-Type header."""
        return f"{self.media_type}{'; charset=utf-8' * self.media_type.startswith('text/')}".encode()


def _pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(batch: ImageBatch) -> bytes:
    """One image, or a grid of several."""
    if len(batch.images) == 1:
        return batch.contents.png(0, batch.images[0], int(batch.labels[0]))
    recipe = b"" if batch.recipe is None else batch.recipe.of_grid(len(batch.images))
    return png(image_grid(batch.images), recipe)


def _animation(kind: str) -> Callable[[ImageBatch], bytes]:
    """An encoder of a loop that runs forward and back."""

    def encode(batch: ImageBatch) -> bytes:
        frames = [Image.fromarray(image) for image in (*batch.images, *batch.images[-2:0:-1])]
        durations = [FRAME_MS] * len(frames)
        durations[0] = durations[len(batch.images) - 1] = END_FRAME_MS
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        first, *rest = frames
        return _pillow(first, kind, save_all=True, append_images=rest, duration=durations, loop=0, **options)

    return encode


def _streamable(
    name: str, media_type: str, encoder: Callable[[Contents], StreamEncoder], revision: int
) -> Format[ImageBatch]:
    def encode(batch: ImageBatch) -> bytes:
        stream = encoder(batch.contents)
        errors = [None] * len(batch.images) if batch.errors is None else batch.errors.tolist()
        parts = map(stream.add, batch.images, batch.labels.tolist(), errors)
        return b"".join((stream.begin(), *parts, stream.end()))

    return Format(name, media_type, encode, encoder, revision)


def _codes_npz(codes: Codes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, codes=codes.codes)
    return buffer.getvalue()


def _codes_json(codes: Codes) -> bytes:
    return json.dumps({**codes.metadata, "codes": codes.codes.tolist()}).encode()


EVENTS = _streamable("events", "text/event-stream", EventEncoder, 3)
_STREAMABLE: tuple[Format[ImageBatch], ...] = (
    _streamable("zip", "application/zip", ZipEncoder, 3),
    _streamable("npz", "application/x-npz", NpzEncoder, 2),
    _streamable("json", "application/json", JsonEncoder, 3),
    EVENTS,
)
IMAGE_FORMATS: tuple[Format[ImageBatch], ...] = (
    Format("png", "image/png", _png, revision=2),
    Format(
        "webp", "image/webp", lambda batch: _pillow(Image.fromarray(image_grid(batch.images)), "WEBP", lossless=True)
    ),
    *_STREAMABLE,
)
"""Formats of /generate: one image or a grid, or all images in a container. The first is the default."""
ANIMATION_FORMATS: tuple[Format[ImageBatch], ...] = (
    Format("png", "image/png", lambda batch: png(image_grid(batch.images, len(batch.images)))),
    Format("gif", "image/gif", _animation("GIF")),
    Format("webp", "image/webp", _animation("WEBP")),
    *_STREAMABLE,
)
"""Formats of /interpolate: a strip, an animation, or all frames in a container."""
CODE_FORMATS: tuple[Format[Codes], ...] = (
    Format("json", "application/json", _codes_json),
    Format("npz", "application/x-npz", _codes_npz),
)
"""Formats of /encode."""


def negotiate(formats: Sequence[Format[T]], name: str | None, accept: str | None) -> Format[T]:
    """The format called `name`, or the one that the Accept header prefers (RFC 9110, 12.5.1), or the first.

    Raises InvalidParameter or NotAcceptable, which list the formats.
    """
    names = [format_.name for format_ in formats]
    if name is not None:
        if name not in names:
            raise InvalidParameter(f"format: unknown format {name!r}; use one of: {', '.join(names)}", formats=names)
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
        raise NotAcceptable(f"accept one of {', '.join(kinds)}, or set `format`", media_types=kinds)
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
    """The q of the most specific range that covers `media_type`; 0 if none does."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        for kind, quality in ranges:
            if kind == pattern:
                return quality
    return 0.0
