"""Shows images on a terminal, without NumPy."""

import ast
import io
import zipfile
from collections.abc import Sequence
from itertools import chain

Pixel = bytes
"""A grey value, or red, green and blue."""
Image = Sequence[Sequence[Pixel]]
"""Rows of pixels."""
MAGIC = b"\x93NUMPY\x01\x00"


def read_images(npz: bytes) -> list[Image]:
    """The images in the service's npz.

    Raises ValueError if it holds no uint8 array [n, H, W], or [n, H, W, 3] in colour, in C order.
    """
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        array = archive.read("images.npy")
    # numpy.lib.format, version 1.0: the magic number, two bytes with the header's length, the header, the elements
    size = int.from_bytes(array[8:10], "little")
    header = ast.literal_eval(array[10 : 10 + size].decode("latin1")) if array.startswith(MAGIC) else {}
    shape = header.get("shape", ())
    if header.get("descr") != "|u1" or header.get("fortran_order") or (len(shape) != 3 and shape[3:] != (3,)):
        raise ValueError("the service sent images in a form that this version does not read")
    count, height, width, depth = (*shape, 1)[:4]
    elements = array[10 + size :]
    pixels = [elements[start : start + depth] for start in range(0, len(elements), depth)]
    rows = [pixels[start : start + width] for start in range(0, count * height * width, width)]
    return [rows[i * height : (i + 1) * height] for i in range(count)]


def render(images: Sequence[Image], columns: int) -> str:
    """The images as text of half blocks, as many beside one another as fit into `columns`."""
    height, width, black = len(images[0]), len(images[0][0]), bytes(len(images[0][0][0]))
    across = max(1, min(len(images), columns // width))
    blank = [[black] * width] * height
    padded = [*images, *[blank] * (-len(images) % across)]
    rows: list[Sequence[Pixel]] = []
    for start in range(0, len(padded), across):
        rows += ([*chain(*parts)] for parts in zip(*padded[start : start + across], strict=True))
    rows += [[black] * len(rows[0])] * (len(rows) % 2)
    return "\n".join(_line(upper, lower) for upper, lower in zip(rows[::2], rows[1::2], strict=True))


def _line(upper: Sequence[Pixel], lower: Sequence[Pixel]) -> str:
    """Two rows of pixels as one row of characters: the foreground colour is the upper pixel's."""
    cells = (f"\x1b[38;{_color(a)}m\x1b[48;{_color(b)}m▀" for a, b in zip(upper, lower, strict=True))
    return "".join(cells) + "\x1b[0m"


def _color(pixel: Pixel) -> str:
    """The code of a pixel's colour: the nearest of a terminal's 24 greys, or a colour of 24 bits."""
    if len(pixel) == 1:
        return f"5;{232 + round(pixel[0] / 255 * 23)}"
    return "2;" + ";".join(map(str, pixel))
