"""Pictures with 16 bits per colour, PNG or TIFF, of which Pillow decodes the upper bytes only."""

import re
import sys
from typing import Any

from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile

REVERSE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""For the order of bytes in a decoder's raw mode the opposite one, which takes the lower bytes for the upper ones."""


def lower_tiles(image: ImageFile) -> list[Any]:
    """What decodes the lower bytes of a picture that is not loaded yet, in place of `image.tile`; empty for 8 bits."""
    return [tile._replace(args=_lower_args(tile.args)) for tile in image.tile if _lower_args(tile.args) != tile.args]


def _lower_args(args: Any) -> Any:
    """The arguments of a decoder, of which the raw mode is the first or the only one, for the lower bytes."""
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
