"""Pictures with 16 bits per value, PNG or TIFF, in colour or grey with alpha: Pillow decodes the upper bytes only."""

import re
import sys
from typing import Any

from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile

REVERSE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""For the order of bytes in a decoder's raw mode the opposite one, which takes the lower bytes for the upper ones."""
GREY_ALPHA = "LA;16B"
"""The raw mode of grey with alpha, which has no opposite order. As RGBA, its four bytes are decoded as they are."""


def is_deep(image: ImageFile) -> bool:
    """Whether a picture that is not loaded yet has 16 bits per colour, of which Pillow would take the upper bytes."""
    return any(_lower_args(tile.args) != tile.args for tile in image.tile)


def lower_bytes(image: ImageFile) -> Image.Image:
    """The lower bytes of a deep picture that is not loaded yet. Loads them into `image`."""
    grey_alpha = any(tile.args == GREY_ALPHA for tile in image.tile)
    image.tile = [tile._replace(args=_lower_args(tile.args)) for tile in image.tile]
    if not grey_alpha:
        return image
    grey, alpha = image.getchannel(1), image.getchannel(3)
    return Image.merge("RGBA", (grey, grey, grey, alpha))


def _lower_args(args: Any) -> Any:
    """The arguments of a decoder, of which the raw mode is the first or the only one, for the lower bytes."""
    if args == GREY_ALPHA:
        return "RGBA"
    if isinstance(args, str):
        return re.sub("^(RGBA?;16)([BLN])$", lambda mode: mode[1] + REVERSE[mode[2]], args)
    return (_lower_args(args[0]), *args[1:]) if isinstance(args, tuple) and args and isinstance(args[0], str) else args


def unused_bits(upper: Image.Image) -> bool:
    """Whether the colours, or the alpha values, leave their highest bit unused."""
    return min(_used_bits(upper)) < 8


def leading_bits(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """The 8 leading bits of the values whose upper and lower bytes these are, from the highest bit that is used."""
    bits, values = _used_bits(upper), range(256)
    return ImageChops.add(
        upper.point([value << 8 - used & 255 for used in bits for value in values]),
        lower.point([value >> used for used in bits for value in values]),
    )


def _used_bits(upper: Image.Image) -> list[int]:
    """For each channel, the bits that the upper bytes use: the three colours share one depth."""
    maxima = [int(maximum) for _, maximum in upper.getextrema()]  # type: ignore[misc]  # one pair per channel
    return [max(maxima[:3]).bit_length()] * 3 + [alpha.bit_length() for alpha in maxima[3:]]
