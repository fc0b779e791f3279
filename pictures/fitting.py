"""Pictures brought to a given shape."""

from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageColor

from pictures.decoding import Background, Pixels, to_channels

Resize = Literal["crop", "pad", "stretch"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
"""`crop` cuts off what the shape has no room for, `pad` adds background, and `stretch` changes the proportions."""


def fit(
    pixels: Pixels,
    height: int,
    width: int,
    channels: int,
    *,
    resize: Resize = "crop",
    background: Background = "white",
) -> Pixels:
    """Bring a picture to [height, width], or to [height, width, 3] for 3 channels.

    The picture's middle stays in the middle. A picture that has the height and width already is not scaled.
    `background`, a colour, fills what `pad` adds.
    """
    pixels = to_channels(pixels, channels)
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(
        _pad(image, height, width, background) if resize == "pad" else _fill(image, height, width, resize == "crop")
    )


def _fill(image: Image.Image, height: int, width: int, crop: bool) -> Image.Image:
    """The picture scaled to the height and width; `crop` uses the largest part in the middle of their proportions."""
    share_x = share_y = 1.0
    if crop:
        share_x = min(1, width * image.height / (height * image.width))
        share_y = min(1, height * image.width / (width * image.height))
    left, top = image.width * (1 - share_x) / 2, image.height * (1 - share_y) / 2
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def _pad(image: Image.Image, height: int, width: int, background: Background) -> Image.Image:
    """The whole picture, scaled into the middle of a canvas of the height and width."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height), ImageColor.getcolor(background, image.mode))
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas
