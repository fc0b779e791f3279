"""Uploads: pictures become 28x28 as MNIST was made, and hostile files are refused at little cost."""

import asyncio
import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from models.pixels import to_unit
from service.codecs import uploads
from service.codecs.uploads import DigitPreparation
from service.errors import InvalidParameter
from training import data

MAX_PIXELS = 1_000_000


def encode(pixels: np.ndarray, format_: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    """A picture file."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format_, **options)
    return buffer.getvalue()


def read(content: bytes, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """The only image in a file."""
    (image,) = asyncio.run(uploads.read([content], DigitPreparation(), max_images=1, max_pixels=max_pixels))
    return image


def drawing(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A white box (top, left, bottom, right) on black."""
    pixels = np.zeros((height, width), np.uint8)
    top, left, bottom, right = box
    pixels[top:bottom, left:right] = 255
    return pixels


# -- normalization -----------------------------------------------------------------------------------------------------


def test_a_picture_of_28_by_28_is_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert torch.equal(read(encode(pixels)), to_unit(torch.from_numpy(pixels))[None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_pictures_are_equal_in_every_colour_mode(mode: str) -> None:
    pixels = drawing(28, 28, (5, 9, 20, 13))
    assert torch.equal(read(encode(pixels, mode=mode)), read(encode(pixels)))


@pytest.mark.parametrize("orientation", [1, 6])
def test_of_16_bit_grey_the_upper_byte_is_used(orientation: int) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 83
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    upright = pixels if orientation == 1 else np.rot90(pixels, -1)
    expected = to_unit(torch.from_numpy((upright >> 8).astype(np.uint8)))[None]
    assert torch.equal(read(buffer.getvalue()), expected)


@pytest.mark.parametrize("box", [(10, 20, 310, 120), (300, 100, 360, 390), (5, 5, 390, 395)])
def test_a_drawing_is_scaled_to_20_by_20_and_centred_by_mass(box: tuple[int, int, int, int]) -> None:
    ink = ((read(encode(drawing(400, 400, box)))[0] + 1) / 2).numpy()
    rows, columns = np.flatnonzero(ink.max(1) > 0.3), np.flatnonzero(ink.max(0) > 0.3)
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert max(height, width) == 20
    assert height / width == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=0.15), "the shape changed"
    centre = [(ink.sum(1 - axis) * np.arange(28)).sum() / ink.sum() for axis in (0, 1)]
    assert centre == pytest.approx([13.5, 13.5], abs=0.75)


def test_a_dark_drawing_on_a_bright_background_is_inverted() -> None:
    pixels = drawing(200, 200, (40, 90, 160, 114))
    white_on_black = read(encode(pixels))
    black_on_white = read(encode(255 - pixels, "JPEG"))
    assert float((white_on_black - black_on_white).abs().mean()) < 0.02


def test_an_enlarged_mnist_digit_is_restored(mnist_root: Path) -> None:
    for image in data.load("mnist", mnist_root, "test").images[:50, 0]:
        enlarged = Image.fromarray(image.numpy()).resize((280, 280), Image.Resampling.BICUBIC)
        restored = read(encode(np.asarray(enlarged)))
        # Rounding the centre of mass may shift an image by one pixel.
        shifts = [torch.roll(restored[0], (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert min(float((to_unit(image) - shift).abs().mean()) for shift in shifts) < 0.1


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [0, 255])
def test_an_empty_picture_is_refused(grey: int) -> None:
    with pytest.raises(InvalidParameter, match="the picture is empty"):
        read(encode(np.full((50, 50), grey, np.uint8)))


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="1001000 pixels, but at most 1000000 more are allowed"):
        read(encode(np.zeros((1000, 1001), np.uint8)))


def test_the_pixels_of_all_files_count_together() -> None:
    content = encode(drawing(600, 600, (100, 100, 300, 200)))
    with pytest.raises(InvalidParameter, match="360000 pixels, but at most 280000 more are allowed"):
        asyncio.run(uploads.read([content] * 3, DigitPreparation(), max_images=10, max_pixels=MAX_PIXELS))


# -- hostile files -----------------------------------------------------------------------------------------------------

TRUNCATED_PNG = encode(np.eye(300, dtype=np.uint8))[:99]


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "gif", "signature only"],
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter, match="not a readable PNG, JPEG, WebP, GIF, BMP, TIFF or npz with `images`"):
        read(content)


def test_a_truncated_picture_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="damaged or not complete"):
        read(TRUNCATED_PNG)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def hostile_png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG with these chunks after its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def hostile_jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encode(drawing(512, 512, (5, 5, 400, 400)), "JPEG", progressive=True)[:-2]
    return content + content[content.rindex(b"\xff\xda") :] * scans + b"\xff\xd9"


def hostile_npz(header: str, content: bytes = b"") -> bytes:
    """A compressed npz with this npy header and data."""
    padded = header.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + content)
    return buffer.getvalue()


def zip_bomb(compression: int, version: bytes) -> bytes:
    """An npz of a few kilobytes that decompresses to 100 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("images.npy", b"\x93NUMPY" + version + struct.pack("<I", 100_000_000) + bytes(100_000_000))
    return buffer.getvalue()


SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
HOSTILE_FILES = {
    "400 million pixels": hostile_png(20_000, 20_000),
    "invalid EXIF": hostile_png(28, 28, chunk(b"eXIf", b"II*\0"), chunk(b"IDAT", zlib.compress(bytes(29 * 28)))),
    "2000 scans": hostile_jpeg(2000),
    "invalid npy header": hostile_npz("{'descr':("),
    "negative shape": hostile_npz(SHAPE % "(-1, 28, 28)", bytes(20_000_000)),
    "900,000 images": hostile_npz(SHAPE % "(900000, 1, 1)", bytes(900_000)),
    "missing data": hostile_npz(SHAPE % "(1, 28, 28)", b"short"),
    "large shape": hostile_npz(SHAPE % "(1, 99999, 99999)"),
    "one image too many": hostile_npz(SHAPE % "(2, 28, 28)", bytes(2 * 784)),
}


@pytest.mark.parametrize("content", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_hostile_files_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter):
        read(content)


@pytest.mark.parametrize(
    ("compression", "version"),
    [(zipfile.ZIP_BZIP2, b"\1\0"), (zipfile.ZIP_LZMA, b"\1\0"), (zipfile.ZIP_DEFLATED, b"\2\0")],
)
def test_a_zip_bomb_is_refused_without_decompressing_it(compression: int, version: bytes) -> None:
    content = zip_bomb(compression, version)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidParameter):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
