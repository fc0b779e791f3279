"""PNG encoding for small images."""

import struct
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.codecs.recipe import KEYWORD

Images = NDArray[np.uint8]
"""Images [n, H, W], or [n, H, W, 3] in colour; or one of them, without the first axis."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(image: Images, recipe: bytes = b"") -> bytes:
    """Encode an image [H, W] or [H, W, 3] as PNG (RFC 2083), with a text in UTF-8 that says how it was made.

    It takes half of Pillow's time at 28x28: zlib's level 1 between fixed chunks. Higher levels save 3 % of the bytes
    and take twice as long. Filters save nothing in colour below 128x128, and 10 % there.
    """
    height, width, *channels = image.shape
    samples = image.reshape(height, -1)
    lines = np.zeros((height, samples.shape[1] + 1), np.uint8)  # column 0 is each line's filter: 0, none
    lines[:, 1:] = samples
    text = _chunk(b"iTXt", _TEXT_HEAD + recipe) if recipe else b""
    return _header(height, width, bool(channels)) + text + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 1)) + _END


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


@lru_cache(maxsize=64)
def _header(height: int, width: int, color: bool) -> bytes:
    """The signature and the header chunk of an image with 8 bits per channel, in RGB or grey."""
    color_type = 2 if color else 0
    return SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))


_TEXT_HEAD = KEYWORD.encode() + bytes(5)
"""The keyword of an uncompressed text without a language or a translated keyword."""
_END = _chunk(b"IEND", b"")
