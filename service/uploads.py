"""Uploaded pictures, brought to 28x28 the way MNIST was made."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.pixels import to_unit
from service.errors import InvalidParameter

FORMATS = ("PNG", "JPEG")


def read(data: bytes, max_pixels: int) -> Tensor:
    """A PNG or JPEG as [1, 28, 28] float32 in [-1, 1], white on black.

    One that is 28x28 is taken as it is. Any other is inverted where its border is bright, cut to what is drawn on it,
    fitted into 20x20 with its shape kept, and centred by mass (LeCun et al. 1998, section III.A). Raises
    InvalidParameter for what is no picture, too large, or empty.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise InvalidParameter(f"image: {image.width}x{image.height} pixels; send at most {max_pixels} in all")
        grey = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning):
        raise InvalidParameter(f"image: does not read as {' or '.join(FORMATS)}") from None
    paper = Image.new("RGBA", grey.size, "black")
    pixels = np.asarray(Image.alpha_composite(paper, grey).convert("L"))
    if pixels.shape != (28, 28):
        pixels = normalised(pixels)
    return to_unit(torch.from_numpy(pixels.copy()))[None]


def normalised(pixels: np.ndarray) -> np.ndarray:
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
