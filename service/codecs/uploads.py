"""Uploaded files, decoded to grey values within limits on pixels, memory and time."""

import asyncio
import io
import math
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401  otherwise Image.open imports all plugins to find it
)
from torch import Tensor

from models.pixels import to_unit
from service.codecs.normalization import Pixels, Polarity, normalize
from service.errors import InvalidParameter

FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF")
"""Pillow's names. AVIF is missing because its decoder allocates what the frame, not the file's header, announces."""
MAX_JPEG_SCANS = 32
"""Passes over a JPEG's pixels. Encoders write about ten; a small file can hold a hundred thousand."""
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that is not part of entropy-coded data."""
SOI, EOI, SOS, TEM = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\x01"
TIFF_COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "group3", "group4")
"""The compressions of common TIFFs. Others, such as LZMA, allocate what the file asks for."""
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compressions that NumPy writes. `zipfile` decompresses others in pieces of unbounded size."""
MAX_EXACT_PIXELS = 4 * 2**20
"""Pixels of a picture above which it is reduced to a longest side of at least REDUCED_SIDE."""
REDUCED_SIDE = 1000

Image.MAX_IMAGE_PIXELS = None  # UploadBudget limits the pixels; Pillow would warn before that limit

_decoder = ThreadPoolExecutor(1, "uploads")
"""Decodes one picture at a time, which bounds the memory: 17 bytes per pixel for WebP, 9 for other formats."""


async def read(
    files: Sequence[bytes], *, max_images: int, max_pixels: int, polarity: Polarity = "auto"
) -> list[Tensor]:
    """Decode and normalize uploaded files on a thread, into images [1, 28, 28] float32 in [-1, 1].

    A file is a picture in one of FORMATS, of which the first frame counts, or an npz with `images` uint8 [n, H, W].
    Requests take turns after each picture. Raises InvalidParameter for files that do not decode, for pictures without a
    digit, and for more than `max_images` images or `max_pixels` pixels in total.
    """
    loop, budget = asyncio.get_running_loop(), UploadBudget(max_images, max_pixels)
    images: list[Tensor] = []
    for data in files:
        for pixels in await loop.run_in_executor(_decoder, _decode, data, polarity, budget):
            normalized = await loop.run_in_executor(_decoder, normalize, pixels, polarity)
            images.append(to_unit(torch.from_numpy(normalized.copy()))[None])
    return images


@dataclass
class UploadBudget:
    """The images and pixels that the remaining files of a request may hold."""

    images: int
    pixels: int

    def spend(self, shape: tuple[int, ...]) -> None:
        """Subtract pictures of `shape` [n, H, W]. Raises InvalidParameter if they exceed the budget."""
        count, pixels = shape[0], math.prod(shape)
        if count > self.images:
            raise InvalidParameter(f"image: {count} pictures, but at most {self.images} more are allowed; send fewer")
        if pixels > self.pixels:
            raise InvalidParameter(
                f"image: {pixels} pixels, but at most {self.pixels} more are allowed; send smaller pictures"
            )
        self.images, self.pixels = self.images - count, self.pixels - pixels


def _decode(data: bytes, polarity: Polarity, budget: UploadBudget) -> list[Pixels]:
    """The pictures in a file."""
    try:
        return _from_npz(data, budget) if data.startswith(b"PK") else [_from_picture(data, polarity, budget)]
    except InvalidParameter:
        raise
    except Exception:
        # Decoders raise anything on hostile files: struct.error, EOFError, tokenize.TokenError, ...
        raise InvalidParameter(f"image: the file is not a readable {', '.join(FORMATS)} or npz with `images`") from None


def _from_picture(data: bytes, polarity: Polarity, budget: UploadBudget) -> Pixels:
    """The grey values [H, W] of a picture, upright."""
    if data.startswith(SOI) and _jpeg_scans(data) > MAX_JPEG_SCANS:
        raise InvalidParameter(
            f"image: the JPEG has more than {MAX_JPEG_SCANS} scans; save it without progressive mode"
        )
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        budget.spend((1, 1, max(image.width * image.height, _tile_pixels(image))))
        factor = _reduction(image)
        if factor > 1:
            image.draft("L", (max(1, image.width // factor), max(1, image.height // factor)))  # of effect on JPEGs
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        decoded = _in_plain_mode(image)
    factor = _reduction(decoded)
    reduced = decoded.reduce(factor) if factor > 1 else decoded
    if reduced.mode == "RGBA":
        return np.asarray(_compose(reduced, polarity))
    return np.asarray(reduced) if reduced.mode == "L" else _eight_bits(np.asarray(reduced))


def _jpeg_scans(data: bytes) -> int:
    """The number of scans up to the end of the JPEG; a motion photo has a film behind it."""
    scans, position = 0, len(SOI)
    while (marker := JPEG_MARKER.search(data, position)) is not None and marker[0] != EOI:
        position = marker.end()
        if marker[0] not in (SOI, TEM):
            position += int.from_bytes(data[position : position + 2])
        scans += marker[0] == SOS
    return scans


def _tile_pixels(image: Image.Image) -> int:
    """The pixels of a TIFF's tile, which may be larger than the picture; 0 without tiles."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    if image.info["compression"] not in TIFF_COMPRESSIONS:
        raise InvalidParameter("image: save the TIFF without compression, or with LZW or deflate")
    return math.prod(int(image.tag_v2.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))


def _in_plain_mode(image: Image.Image) -> Image.Image:
    """The picture with values of 8 bits (L, or RGBA if pixels may be transparent), of more (I), or as floats (F)."""
    deep = "I" if image.mode.startswith("I") else "F" if image.mode == "F" else None
    mode = deep or ("RGBA" if image.has_transparency_data else "L")
    return image if image.mode == mode else image.convert(mode)


def _reduction(image: Image.Image) -> int:
    """The factor by which to reduce both sides of a picture."""
    return max(image.size) // REDUCED_SIDE if image.width * image.height > MAX_EXACT_PIXELS else 1


def _eight_bits(values: NDArray[Any]) -> Pixels:
    """Values >= 0 as 8 bits. The depth is the least that holds them; floats up to 1 are shares of white."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        values = (values * 255 if values.max() <= 1 else values).clip(0, 2**31 - 1).astype(np.int64)
    depth = max(8, int(values.max()).bit_length())
    return (values.clip(0) >> (depth - 8)).astype(np.uint8)


def _compose(image: Image.Image, polarity: Polarity) -> Image.Image:
    """An RGBA image in grey, on black or white: what contrasts with the visible pixels, unless `polarity` says it."""
    grey, alpha = np.asarray(image.convert("L")), np.asarray(image.getchannel("A"))
    bright = (grey.astype(np.float32) * alpha).sum() >= 127.5 * alpha.sum(dtype=np.float32)
    on_black = bright if polarity == "auto" else polarity == "light-on-dark"
    background = Image.new("RGBA", image.size, "black" if on_black else "white")
    return Image.alpha_composite(background, image).convert("L")


def _from_npz(data: bytes, budget: UploadBudget) -> list[Pixels]:
    """The pictures of an npz. Its header is checked before its pixels are decompressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("images.npy") as member:
        if archive.getinfo("images.npy").compress_type not in NPZ_COMPRESSIONS:
            raise InvalidParameter("image: write the npz with numpy.savez or numpy.savez_compressed")
        if np.lib.format.read_magic(member) != (1, 0):  # a later version's header may be as long as memory
            raise InvalidParameter("image: `images` must have npy version 1.0, which numpy.savez writes")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(shape) != 3 or min(shape) < 1:
            raise InvalidParameter(f"image: `images` must be uint8 [n, H, W]; it is {dtype} {list(shape)}")
        budget.spend(shape)
        flat = np.frombuffer(member.read(math.prod(shape)), np.uint8)
    return list(flat.reshape(shape, order="F" if fortran else "C"))
