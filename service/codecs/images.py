"""Images [n, 28, 28] uint8 as files."""

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.pixels import image_grid
from service.errors import InvalidParameter, NotAcceptable

Images = NDArray[np.uint8]


class ImageBatch(NamedTuple):
    """What goes into a file."""

    images: Images
    """[n, 28, 28]."""
    labels: NDArray[np.int64]
    """[n], -1 where there is none."""
    metadata: dict[str, Any]
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


class StreamEncoder(Protocol):
    """Puts images into a file one at a time: the parts that `begin`, each `add` and `end` return, joined, are it."""

    def begin(self) -> bytes:
        """What comes before the first image."""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        """The next image [28, 28], its label (-1: none), and how far it is from what it is to be like, if anything."""

    def end(self) -> bytes:
        """What comes after the last one."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """A way to write images, or codes."""

    name: str
    media_type: str
    encode: Callable[[T], bytes]
    stream_encoder: Callable[[int, dict[str, Any]], StreamEncoder] | None = None
    """A packer of so many images and what is said `about` them, where the format allows one."""

    @cached_property
    def content_type(self) -> bytes:
        """As a header says it."""
        return f"{self.media_type}{'; charset=utf-8' * self.media_type.startswith('text/')}".encode()


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(image: Images) -> bytes:
    """[H, W] as PNG (RFC 2083): zlib's level 1 around fixed chunks, in half of Pillow's time at 28x28.

    Higher levels save 3 % of the bytes there and double the time.
    """
    lines = np.zeros((image.shape[0], image.shape[1] + 1), np.uint8)  # each with its filter's number before it: 0, none
    lines[:, 1:] = image
    return _head(*image.shape) + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 1)) + _TAIL


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


@lru_cache(maxsize=64)
def _head(height: int, width: int) -> bytes:
    """The signature and a header that says 8 bits of grey."""
    return SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


_TAIL = _chunk(b"IEND", b"")


def grid(images: Images, columns: int | None = None) -> Images:
    """[n, H, W] as one image, row by row, as near to a square as n allows; what is left of the last row stays black."""
    return image_grid(images, columns)


class _Buffer:
    """A file that can only be written, and what was written since one last looked."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def write(self, data: Any) -> int:
        return self.buffer.write(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = self.buffer.getvalue()
        self.buffer.seek(0)
        self.buffer.truncate()
        return data


class _SeekableBuffer(_Buffer):
    """A pipe that can be wound back as far as nobody has looked yet.

    To `zipfile` that makes a difference: a member's size and checksum come before it, and not after it, where only
    readers that begin at the end of an archive find them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def tell(self) -> int:
        return self.taken + self.buffer.tell()

    def seek(self, place: int) -> int:
        return self.taken + self.buffer.seek(place - self.taken)

    def take(self) -> bytes:
        data = super().take()
        self.taken += len(data)
        return data


def _entry(name: str) -> zipfile.ZipInfo:
    """A member of an archive, stored as it is. Its date is fixed: the same draw is the same bytes."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


class _Zip:
    """A PNG an image, called by its number and label."""

    def __init__(self, count: int, about: dict[str, Any]) -> None:
        self.pipe, self.count = _SeekableBuffer(), 0
        self.archive = zipfile.ZipFile(self.pipe, "w")  # type: ignore[call-overload]  # all that it does is write

    def begin(self) -> bytes:
        return b""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        name = f"{self.count:05d}.png" if label < 0 else f"{self.count:05d}_{label}.png"
        self.archive.writestr(_entry(name), png(image))
        self.count += 1
        return self.pipe.take()

    def end(self) -> bytes:
        self.archive.close()
        return self.pipe.take()


class _Npz:
    """`images` uint8 [n, 28, 28], `labels` int64 [n], and `errors` float64 [n] where there are any."""

    def __init__(self, count: int, about: dict[str, Any]) -> None:
        self.pipe, self.count = _Buffer(), count
        self.labels: list[int] = []
        self.errors: list[float] = []
        self.archive = zipfile.ZipFile(self.pipe, "w")  # type: ignore[call-overload]

    def begin(self) -> bytes:
        self.member = self.archive.open(_entry("images.npy"), "w")
        head = {"descr": "|u1", "fortran_order": False, "shape": (self.count, 28, 28)}
        np.lib.format.write_array_header_1_0(self.member, head)
        return self.pipe.take()

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        self.member.write(image.tobytes())
        self.labels.append(label)
        self.errors += () if error is None else (error,)
        return self.pipe.take()

    def end(self) -> bytes:
        self.member.close()
        arrays = {"labels": np.array(self.labels, np.int64), "errors": np.array(self.errors)}
        for name, array in arrays.items():
            if len(array):
                with self.archive.open(_entry(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array)
        self.archive.close()
        return self.pipe.take()


def _described(image: Images, label: int, error: float | None) -> dict[str, Any]:
    item = {"label": label, "png": base64.b64encode(png(image)).decode()}
    return item if error is None else {**item, "error": error}


class _Json:
    """What is said about the images, and `images`, each a `label` and a `png` in base64."""

    def __init__(self, count: int, about: dict[str, Any]) -> None:
        self.about, self.between = about, b""

    def begin(self) -> bytes:
        return json.dumps({**self.about, "images": []}).encode()[:-2]

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        before, self.between = self.between, b", "
        return before + json.dumps(_described(image, label, error)).encode()

    def end(self) -> bytes:
        return b"]}"


class _Events:
    """Server-sent events: `start` with what is said about the images, `image` each with its index, `end`.

    Between them whoever sends them may say how it goes.
    """

    def __init__(self, count: int, about: dict[str, Any]) -> None:
        self.about, self.count = {**about, "n": count}, 0

    def begin(self) -> bytes:
        return event("start", self.about)

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        self.count += 1
        return event("image", {"index": self.count - 1, **_described(image, label, error)})

    def end(self) -> bytes:
        return event("end", {})


def preview(index: int, image: Images) -> bytes:
    """An event that shows where an image [28, 28] stands."""
    return event("preview", {"index": index, "png": base64.b64encode(png(image)).decode()})


def event(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _codes_npz(codes: Codes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, codes=codes.codes)
    return buffer.getvalue()


def _codes_json(codes: Codes) -> bytes:
    return json.dumps({**codes.about, "codes": codes.codes.tolist()}).encode()


def _animation(kind: str) -> Callable[[ImageBatch], bytes]:
    """There and back, a quarter of a second a frame at the ends and less between."""

    def encode(drawn: ImageBatch) -> bytes:
        frames = [Image.fromarray(image) for image in (*drawn.images, *drawn.images[-2:0:-1])]
        durations = [120] * len(frames)
        durations[0] = durations[len(drawn.images) - 1] = 480
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        first, *rest = frames
        return _file(first, kind, save_all=True, append_images=rest, duration=durations, loop=0, **options)

    return encode


def _packed(name: str, media_type: str, pack: Callable[[int, dict[str, Any]], StreamEncoder]) -> Format[ImageBatch]:
    def encode(drawn: ImageBatch) -> bytes:
        packer = pack(len(drawn.images), drawn.metadata)
        errors = [None] * len(drawn.images) if drawn.errors is None else drawn.errors.tolist()
        added = map(packer.add, drawn.images, drawn.labels.tolist(), errors)
        return b"".join((packer.begin(), *added, packer.end()))

    return Format(name, media_type, encode, pack)


EVENTS = _packed("events", "text/event-stream", _Events)
_PACKED: tuple[Format[ImageBatch], ...] = (
    _packed("zip", "application/zip", _Zip),
    _packed("npz", "application/x-npz", _Npz),
    _packed("json", "application/json", _Json),
    EVENTS,
)
IMAGE_FORMATS: tuple[Format[ImageBatch], ...] = (
    Format("png", "image/png", lambda drawn: png(grid(drawn.images))),
    Format("webp", "image/webp", lambda drawn: _file(Image.fromarray(grid(drawn.images)), "WEBP", lossless=True)),
    *_PACKED,
)
"""How /generate can answer: one image as it is, several as a grid, or each by itself in a package."""
ANIMATION_FORMATS: tuple[Format[ImageBatch], ...] = (
    Format("png", "image/png", lambda drawn: png(grid(drawn.images, len(drawn.images)))),
    Format("gif", "image/gif", _animation("GIF")),
    Format("webp", "image/webp", _animation("WEBP")),
    *_PACKED,
)
"""How /interpolate can answer: a strip, an animation, or frames."""


CODE_FORMATS: tuple[Format[Codes], ...] = (
    Format("json", "application/json", _codes_json),
    Format("npz", "application/x-npz", _codes_npz),
)
"""How /encode can answer."""


def negotiate(formats: Sequence[Format[T]], name: str | None, accept: str | None) -> Format[T]:
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
