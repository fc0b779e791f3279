"""Uploaded pictures, brought to 28x28 the way MNIST was made."""

import io
import math
import warnings
import zipfile
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.pixels import to_unit
from service.errors import InvalidParameter

FORMATS = ("PNG", "JPEG")

Pixels = NDArray[np.uint8]


def read(data: bytes, max_pixels: int) -> list[Tensor]:
    """The pictures in a PNG, a JPEG, or an npz with `images` uint8 [n, H, W], as [1, 28, 28] float32 in [-1, 1] each.

    One that is 28x28 is taken as it is. Any other is inverted where its border is bright, cut to what is drawn on it,
    fitted into 20x20 with its shape kept, and centred by mass (LeCun et al. 1998, section III.A). Raises
    InvalidParameter for what is no picture, too large, or empty.
    """
    pictures = _archived(data, max_pixels) if data.startswith(b"PK") else [_picture(data, max_pixels)]
    fitting = [pixels if pixels.shape == (28, 28) else normalised(pixels) for pixels in pictures]
    return [to_unit(torch.from_numpy(pixels.copy()))[None] for pixels in fitting]


def _picture(data: bytes, max_pixels: int) -> Pixels:
    """The grey values [H, W] of a PNG or JPEG, white on black where it is transparent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise InvalidParameter(f"image: {image.width}x{image.height} pixels; send at most {max_pixels} in all")
        grey = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning):
        raise InvalidParameter(f"image: does not read as {', '.join(FORMATS)} or npz") from None
    paper = Image.new("RGBA", grey.size, "black")
    return np.asarray(Image.alpha_composite(paper, grey).convert("L"))


def _archived(data: bytes, max_pixels: int) -> list[Pixels]:
    """The pictures of an npz, whose header is read before its pixels are unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("images.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = reader(member)
            if dtype != np.uint8 or len(shape) != 3 or 0 in shape:
                raise InvalidParameter(f"image: `images` must be uint8 [n, H, W]; it is {dtype} {list(shape)}")
            if math.prod(shape) > max_pixels:
                raise InvalidParameter(f"image: {math.prod(shape)} pixels; send at most {max_pixels} in all")
            content = member.read(math.prod(shape) + 1)
        flat = np.frombuffer(content, np.uint8)
        return list(flat.reshape(shape, order="F" if fortran else "C"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        raise InvalidParameter("image: does not read as an npz with `images`") from None


def normalised(pixels: Pixels) -> Pixels:
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
