"""Uploaded pictures, brought to 28x28 the way MNIST was made."""

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
"""Passes over a JPEG's pixels. Encoders make ten or so; a file has room for a hundred thousand."""
NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy packs arrays. What is packed otherwise, `zipfile` unpacks in pieces of any size."""

Image.MAX_IMAGE_PIXELS = None  # `Budget` bounds them, where Pillow would warn at first

Pixels = NDArray[np.uint8]


async def read(files: Sequence[bytes], *, max_images: int, max_pixels: int) -> list[Tensor]:
    """The pictures in the files, as [1, 28, 28] float32 in [-1, 1] each, read in a thread.

    A file is a PNG, a JPEG, or an npz with `images` uint8 [n, H, W]. A picture of 28x28 is taken as it is. Any other is
    inverted where its border is bright, cut to what is drawn on it, fitted into 20x20 with its shape kept, and centred
    by mass (LeCun et al. 1998, section III.A). Raises InvalidParameter for what is no picture, or empty, and where
    there are more than `max_images`, or `max_pixels` in all.
    """
    return await asyncio.to_thread(_read, files, UploadBudget(max_images, max_pixels))


@dataclass
class UploadBudget:
    """What the files of one request may still hold."""

    images: int
    pixels: int

    def spend(self, shape: tuple[int, ...]) -> None:
        """Take pictures of `shape` [n, H, W] off it. Raises InvalidParameter where they are too much."""
        count, pixels = shape[0], math.prod(shape)
        if count > self.images:
            raise InvalidParameter(f"image: {count} pictures where {self.images} more may come; send fewer")
        if pixels > self.pixels:
            raise InvalidParameter(f"image: {pixels} pixels where {self.pixels} more may come; send smaller pictures")
        self.images, self.pixels = self.images - count, self.pixels - pixels


def _read(files: Sequence[bytes], budget: UploadBudget) -> list[Tensor]:
    found: list[Tensor] = []
    for data in files:
        try:
            pictures = _archived(data, budget) if data.startswith(b"PK") else [_picture(data, budget)]
        except InvalidParameter:
            raise
        except Exception:
            # Decoders of hostile files raise whatever they like: struct.error, EOFError, tokenize.TokenError, ...
            raise InvalidParameter(f"image: does not read as {', '.join(FORMATS)} or npz with `images`") from None
        fitting = [pixels if pixels.shape == (28, 28) else mnist_normalize(pixels) for pixels in pictures]
        found += [to_unit(torch.from_numpy(pixels.copy()))[None] for pixels in fitting]
    return found


def _picture(data: bytes, budget: UploadBudget) -> Pixels:
    """The grey values [H, W] of a PNG or JPEG, on black where it is transparent."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidParameter(f"image: a JPEG in more than {MAX_JPEG_SCANS} scans; write it anew, not progressive")
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        budget.spend((1, image.height, image.width))
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits of grey, of which Pillow would keep the lower
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    grey = upright.convert("RGBA")
    paper = Image.new("RGBA", grey.size, "black")
    return np.asarray(Image.alpha_composite(paper, grey).convert("L"))


def _archived(data: bytes, budget: UploadBudget) -> list[Pixels]:
    """The pictures of an npz, whose header is read before its pixels are unpacked."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("images.npy") as member:
        if archive.getinfo("images.npy").compress_type not in NPZ_COMPRESSIONS:
            raise InvalidParameter("image: an npz is to be packed as numpy.savez or savez_compressed does it")
        if np.lib.format.read_magic(member) != (1, 0):  # in later ones a header may be as long as memory
            raise InvalidParameter("image: `images` in an npz is to be of version 1.0, as numpy writes it")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(shape) != 3 or min(shape) < 1:
            raise InvalidParameter(f"image: `images` must be uint8 [n, H, W]; it is {dtype} {list(shape)}")
        budget.spend(shape)
        flat = np.frombuffer(member.read(math.prod(shape)), np.uint8)
    return list(flat.reshape(shape, order="F" if fortran else "C"))


def mnist_normalize(pixels: Pixels) -> Pixels:
    """[H, W] uint8 of a drawing -> [28, 28] uint8, white on black, its mass in the middle."""
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    if np.median(border) > 127:
        pixels = 255 - pixels
    drawn = pixels > 32
    if not drawn.any():
        raise InvalidParameter("image: nothing is drawn on it")
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
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
