"""Uploaded pictures, normalized to the 28x28 images of MNIST."""

import asyncio
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from models.pixels import to_unit
from service.errors import InvalidParameter

FORMATS = ("PNG", "JPEG")
MAX_JPEG_SCANS = 64
"""Passes over a JPEG's pixels. Encoders write about ten; a small file can hold a hundred thousand."""
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compressions that NumPy writes. `zipfile` decompresses others in pieces of unbounded size."""
INK_THRESHOLD = 32
"""Grey values above this count as ink on black."""

Image.MAX_IMAGE_PIXELS = None  # UploadBudget limits the pixels; Pillow would warn before that limit

Pixels = NDArray[np.uint8]


async def read(files: Sequence[bytes], *, max_images: int, max_pixels: int) -> list[Tensor]:
    """Decode uploaded files on a thread, into images [1, 28, 28] float32 in [-1, 1].

    A file is a PNG, a JPEG, or an npz with `images` uint8 [n, H, W]. A picture of 28x28 is used as it is. Any other is
    normalized by `mnist_normalize`. Raises InvalidParameter for files that do not decode, for empty pictures, and for
    more than `max_images` images or `max_pixels` pixels in total.
    """
    return await asyncio.to_thread(_read, files, UploadBudget(max_images, max_pixels))


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


def _read(files: Sequence[bytes], budget: UploadBudget) -> list[Tensor]:
    images: list[Tensor] = []
    for data in files:
        try:
            pictures = _from_npz(data, budget) if data.startswith(b"PK") else [_from_picture(data, budget)]
        except InvalidParameter:
            raise
        except Exception:
            # Decoders raise anything on hostile files: struct.error, EOFError, tokenize.TokenError, ...
            raise InvalidParameter(
                f"image: the file is not a readable {', '.join(FORMATS)} or npz with `images`"
            ) from None
        normalized = [pixels if pixels.shape == (28, 28) else mnist_normalize(pixels) for pixels in pictures]
        images += [to_unit(torch.from_numpy(pixels.copy()))[None] for pixels in normalized]
    return images


def _from_picture(data: bytes, budget: UploadBudget) -> Pixels:
    """The grey values [H, W] of a PNG or JPEG; transparent pixels are black."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidParameter(
            f"image: the JPEG has more than {MAX_JPEG_SCANS} scans; save it without progressive mode"
        )
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        budget.spend((1, image.height, image.width))
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey, of which Pillow would keep the lower byte
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    rgba = upright.convert("RGBA")
    background = Image.new("RGBA", rgba.size, "black")
    return np.asarray(Image.alpha_composite(background, rgba).convert("L"))


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


def mnist_normalize(pixels: Pixels) -> Pixels:
    """Normalize a picture [H, W] uint8 as MNIST was made (LeCun et al. 1998, section III.A): [28, 28], white on black.

    A picture with a bright border is inverted. Its ink is cropped, scaled to fit 20x20, and centred by mass. Raises
    InvalidParameter if there is no ink.
    """
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    if np.median(border) > 127:
        pixels = 255 - pixels
    ink = pixels > INK_THRESHOLD
    if not ink.any():
        raise InvalidParameter("image: the picture is empty; draw something on it")
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    figure = Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = 20 / max(figure.size)
    size = max(1, round(figure.width * scale)), max(1, round(figure.height * scale))
    small = np.asarray(figure.resize(size, Image.Resampling.LANCZOS))
    mass = small.astype(np.float64) + 1e-9
    centre = [float((mass.sum(axis=1 - axis) * np.arange(mass.shape[axis])).sum() / mass.sum()) for axis in (0, 1)]
    top, left = (min(max(0, round(13.5 - middle)), 28 - side) for middle, side in zip(centre, small.shape, strict=True))
    canvas = np.zeros((28, 28), np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
