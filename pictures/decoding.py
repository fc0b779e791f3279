"""Picture files, decoded to 8-bit pixels within limits on memory and time that hold for hostile files, too."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageColor,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401  otherwise Image.open imports all plugins to find it
)
from PIL.ImageFile import ImageFile

from pictures.deep_colors import is_deep, leading_bits, lower_bytes, unused_bits

Pixels = NDArray[np.uint8]
"""A picture: grey values [H, W], 0 black, or colours [H, W, 3], red first."""
Background = str
"""What is behind transparent pixels: a colour (`white`, `#ff8800`), or CONTRAST."""

CONTRAST = "contrast"
"""The background that is black or white, whichever contrasts more with the picture's visible pixels."""
FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF")
"""Pillow's names. AVIF is missing because its decoder allocates what the frame, not the file's header, announces."""
MAX_JPEG_SCANS = 32
"""Passes over a JPEG's pixels. Encoders write about ten; a small file can hold a hundred thousand."""
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that is not part of entropy-coded data."""
SOI, EOI, SOS, TEM = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\x01"
TIFF_COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "group3", "group4")
"""The compressions of common TIFFs. Others, such as LZMA, allocate what the file asks for."""
MAX_EXACT_PIXELS = 4 * 2**20
"""Pixels of a picture above which it is reduced, to sides of at least REDUCED_SIDES."""
REDUCED_SIDES = (1000, 256)
"""Least lengths of a reduced picture's longer and shorter side; no model's images are larger than half of that."""

Image.MAX_IMAGE_PIXELS = None  # `max_pixels` limits the pixels; Pillow would warn before that limit


class UnreadablePicture(ValueError):
    """A file is not a picture that can be decoded. The message is a clause that says why and what to do."""


class UnknownFormat(UnreadablePicture):
    """A file is in none of FORMATS."""


def decode(
    source: bytes | Path,
    *,
    channels: int | None = None,
    background: Background = "white",
    max_pixels: int | None = None,
) -> Pixels:
    """Decode a picture in one of FORMATS: its first frame, upright as its EXIF data says, in 8 bits.

    `channels` 1 gives grey values [H, W] and 3 colours [H, W, 3]; None gives colours unless all pixels are grey.
    Deeper values keep their leading bits, counted from the highest bit that the picture uses. Pictures of more than
    MAX_EXACT_PIXELS are reduced by a whole factor. A call needs up to 17 bytes of memory per pixel for WebP, and 9 for
    other formats. Raises UnreadablePicture, before decoding if the file announces more than `max_pixels` pixels;
    OSError if the file of a path cannot be read; and ValueError for an unknown `background`.
    """
    color = None if background == CONTRAST else parse_color(background)
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        image = _open_reduced(data, max_pixels, grey=channels == 1)
        if image.mode == "RGBA":
            image = _compose(image, color)
        pixels = _eight_bits(np.asarray(image)) if image.mode in ("I", "F") else np.asarray(image)
        if channels is None:
            channels = 1 if pixels.ndim == 2 or (pixels == pixels[..., :1]).all() else 3
        return to_channels(pixels, channels)
    except UnreadablePicture:
        raise
    except Exception as error:
        # Decoders raise anything on hostile files: struct.error, EOFError, tokenize.TokenError, ...
        raise _reason(error) from None


def decode_alpha(data: bytes) -> Pixels | None:
    """The opacity [H, W] of the pixels that `decode` gives for a picture, 255 opaque; None if it has no transparency.

    Raises UnreadablePicture.
    """
    try:
        image = _open_reduced(data, None, grey=False)
        return np.asarray(image.getchannel("A")) if image.mode == "RGBA" else None
    except UnreadablePicture:
        raise
    except Exception as error:
        raise _reason(error) from None


def count_pixels(data: bytes) -> int:
    """The pixels that decoding `data` allocates, as its header announces them.

    Raises UnreadablePicture if that is no picture in one of FORMATS, or one that takes too much time or memory.
    """
    try:
        with _open_header(data) as image:
            return _announced_pixels(image)
    except UnreadablePicture:
        raise
    except Exception as error:
        raise _reason(error) from None


def _open_reduced(data: bytes, max_pixels: int | None, *, grey: bool) -> Image.Image:
    """The opened picture, reduced by a whole factor if it is large."""
    image = _open(data, max_pixels, grey=grey)
    factor = _reduction(image)
    return image.reduce(factor) if factor > 1 else image


def _reason(error: Exception) -> UnreadablePicture:
    """Why a decoder that raised `error` cannot decode a file."""
    if isinstance(error, UnidentifiedImageError):
        return UnknownFormat(f"the file is not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return UnreadablePicture("the file is damaged or not complete")


def parse_color(color: str) -> tuple[int, int, int]:
    """The red, green and blue values of a colour's name or of #rrggbb. Raises ValueError for anything else."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(color)
    except ValueError:
        alpha = [0]
    if alpha:
        raise ValueError(f"{color!r} is not a colour; use a name, such as white, or #rrggbb")
    return red, green, blue


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """A picture as grey values [H, W], the luma of its colours (ITU-R 601), for 1 channel; [H, W, 3] for 3."""
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return np.repeat(pixels[..., None], 3, axis=2) if channels == 3 and pixels.ndim == 2 else pixels


def _open(data: bytes, max_pixels: int | None, grey: bool) -> Image.Image:
    """The picture, upright, in mode L, RGB, RGBA, or with deep values in I or F; large JPEGs are reduced already."""
    with _open_header(data) as image:
        pixels = _announced_pixels(image)
        if max_pixels is not None and pixels > max_pixels:
            raise UnreadablePicture(f"{pixels} pixels, but at most {max_pixels} are allowed; make the picture smaller")
        factor = _reduction(image)
        if factor > 1:  # of effect on JPEGs
            image.draft("L" if grey else "RGB", (max(1, image.width // factor), max(1, image.height // factor)))
        deep_colors = is_deep(image)
        image.load()
        if deep_colors and unused_bits(image):
            with _open_header(data) as low:
                image.paste(leading_bits(image, lower_bytes(low)))
        ImageOps.exif_transpose(image, in_place=True)
        deep = "I" if image.mode.startswith("I") else "F" if image.mode == "F" else None
        plain = "L" if grey or image.mode in ("1", "L") else "RGB"
        mode = deep or ("RGBA" if image.has_transparency_data else plain)
        return image if image.mode == mode else image.convert(mode)


def _open_header(data: bytes) -> ImageFile:
    """The picture before its pixels are decoded."""
    if data.startswith(SOI) and _jpeg_scans(data) > MAX_JPEG_SCANS:
        raise UnreadablePicture(f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it without progressive mode")
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _jpeg_scans(data: bytes) -> int:
    """The number of scans up to the end of the JPEG; a motion photo has a film behind it."""
    scans, position = 0, len(SOI)
    while (marker := JPEG_MARKER.search(data, position)) is not None and marker[0] != EOI:
        position = marker.end()
        if marker[0] not in (SOI, TEM):
            position += int.from_bytes(data[position : position + 2])
        scans += marker[0] == SOS
    return scans


def _announced_pixels(image: Image.Image) -> int:
    """The pixels of a picture, or of a TIFF's tile, which may be larger than the picture."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.width * image.height
    if image.info["compression"] not in TIFF_COMPRESSIONS:
        raise UnreadablePicture("save the TIFF without compression, or with LZW or deflate")
    sides = (int(image.tag_v2.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    return max(image.width * image.height, math.prod(sides))


def _reduction(image: Image.Image) -> int:
    """The factor by which to reduce both sides of a picture."""
    if image.width * image.height <= MAX_EXACT_PIXELS:
        return 1
    longer, shorter = REDUCED_SIDES
    return max(1, min(max(image.size) // longer, min(image.size) // shorter))


def _compose(image: Image.Image, color: tuple[int, int, int] | None) -> Image.Image:
    """An RGBA picture in RGB, on `color`; None is CONTRAST."""
    if color is None:
        grey, alpha = np.asarray(image.convert("L")), np.asarray(image.getchannel("A"))
        bright = (grey.astype(np.float32) * alpha).sum() >= 127.5 * alpha.sum(dtype=np.float32)
        color = (0, 0, 0) if bright else (255, 255, 255)
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")


def _eight_bits(values: NDArray[Any]) -> Pixels:
    """Values >= 0 as 8 bits. The depth is the least that holds them; floats up to 1 are shares of white."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = (values * 255 if values.max() <= 1 else values).clip(0, 2**31 - 1).astype(np.int64)
    depth = max(8, int(values.max()).bit_length())
    return (values.clip(0) >> (depth - 8)).astype(np.uint8)
