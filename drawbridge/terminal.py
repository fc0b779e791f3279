"""Shows images on a terminal, without NumPy."""

import ast
import io
import zipfile
from collections.abc import Sequence

Image = Sequence[bytes]
"""Rows of grey values, a byte each."""
MAGIC = b"\x93NUMPY\x01\x00"


def read_images(npz: bytes) -> list[Image]:
    """The images in the service's npz. Raises ValueError where it holds no uint8 array [n, H, W] in C order."""
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        array = archive.read("images.npy")
    # numpy.lib.format, version 1.0: the magic number, two bytes with the header's length, the header, the elements
    size = int.from_bytes(array[8:10], "little")
    header = ast.literal_eval(array[10 : 10 + size].decode("latin1")) if array.startswith(MAGIC) else {}
    if header.get("descr") != "|u1" or header.get("fortran_order") or len(header.get("shape", ())) != 3:
        raise ValueError("the service sent images in a form that this version does not read")
    count, height, width = header["shape"]
    elements = array[10 + size :]
    rows = [elements[start : start + width] for start in range(0, count * height * width, width)]
    return [rows[i * height : (i + 1) * height] for i in range(count)]


def render(images: Sequence[Image], columns: int) -> str:
    """The images as text of half blocks in shades of grey, as many beside one another as fit into `columns`."""
    height, width = len(images[0]), len(images[0][0])
    across = max(1, min(len(images), columns // width))
    blank = [bytes(width)] * height
    padded = [*images, *[blank] * (-len(images) % across)]
    rows: list[bytes] = []
    for start in range(0, len(padded), across):
        rows += (b"".join(parts) for parts in zip(*padded[start : start + across], strict=True))
    rows += [bytes(len(rows[0]))] * (len(rows) % 2)
    return "\n".join(_line(upper, lower) for upper, lower in zip(rows[::2], rows[1::2], strict=True))


def _line(upper: bytes, lower: bytes) -> str:
    """Two rows of pixels as one row of characters: the foreground colour is the upper pixel's."""
    cells = (f"\x1b[38;5;{_grey(a)}m\x1b[48;5;{_grey(b)}m▀" for a, b in zip(upper, lower, strict=True))
    return "".join(cells) + "\x1b[0m"


def _grey(value: int) -> int:
    """The colour nearest to a byte among a terminal's 24 greys."""
    return 232 + round(value / 255 * 23)
