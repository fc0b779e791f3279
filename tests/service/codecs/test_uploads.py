"""Uploaded pictures become 28x28 the way MNIST was made."""

import asyncio
import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from models.pixels import to_unit
from service.codecs import uploads
from service.errors import InvalidParameter
from training import data

MAX_PIXELS = 1_000_000


def written(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def read(content: bytes, max_pixels: int) -> torch.Tensor:
    """The only picture in `content`."""
    (image,) = asyncio.run(uploads.read([content], max_images=1, max_pixels=max_pixels))
    return image


def drawing(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """White on black, the box filled."""
    pixels = np.zeros((height, width), np.uint8)
    top, left, bottom, right = box
    pixels[top:bottom, left:right] = 255
    return pixels


def ink(image: torch.Tensor) -> np.ndarray:
    return ((image[0] + 1) / 2).numpy()


def test_what_is_28_by_28_is_taken_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert torch.equal(read(written(pixels), MAX_PIXELS), to_unit(torch.from_numpy(pixels))[None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_colour_makes_no_difference_to_grey(mode: str) -> None:
    pixels = drawing(28, 28, (5, 9, 20, 13))
    assert torch.equal(read(written(pixels, mode=mode), MAX_PIXELS), read(written(pixels), MAX_PIXELS))


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_of_grey_are_the_upper_eight(orientation: int) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 83
    tag, buffer = Image.Exif(), io.BytesIO()
    tag[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(buffer, "PNG", exif=tag)
    upright = pixels if orientation == 1 else np.rot90(pixels, -1)
    assert torch.equal(
        read(buffer.getvalue(), MAX_PIXELS), to_unit(torch.from_numpy((upright >> 8).astype(np.uint8)))[None]
    )


@pytest.mark.parametrize("box", [(10, 20, 310, 120), (300, 100, 360, 390), (5, 5, 390, 395)])
def test_a_drawing_fills_20_by_20_keeps_its_shape_and_is_centred_by_mass(box: tuple[int, int, int, int]) -> None:
    image = ink(read(written(drawing(400, 400, box)), MAX_PIXELS))
    rows, columns = np.flatnonzero(image.max(1) > 0.3), np.flatnonzero(image.max(0) > 0.3)
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert max(height, width) == 20
    assert height / width == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=0.15)
    centre = [(image.sum(1 - axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert centre == pytest.approx([13.5, 13.5], abs=0.75)


def test_ink_on_paper_is_turned_to_white_on_black() -> None:
    pixels = drawing(200, 200, (40, 90, 160, 114))
    dark = read(written(pixels), MAX_PIXELS)
    bright = read(written(255 - pixels, "JPEG"), MAX_PIXELS)
    assert float((dark - bright).abs().mean()) < 0.02


def test_a_picture_without_a_drawing_is_refused() -> None:
    for grey in (0, 255):
        with pytest.raises(InvalidParameter, match="nothing is drawn"):
            read(written(np.full((50, 50), grey, np.uint8)), MAX_PIXELS)


def test_too_many_pixels_are_refused_before_they_are_unpacked() -> None:
    with pytest.raises(InvalidParameter, match="1001000 pixels where 1000000 more may come"):
        read(written(np.zeros((1000, 1001), np.uint8)), MAX_PIXELS)


@pytest.mark.parametrize("content", [b"", b"GIF89a", written(np.eye(300, dtype=np.uint8))[:99], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter, match="does not read as PNG, JPEG or npz with `images`"):
        read(content, MAX_PIXELS)


def test_a_digit_of_mnist_enlarged_comes_back_nearly_as_it_was(mnist_root) -> None:
    for image in data.load("mnist", mnist_root, "test").images[:50, 0]:
        large = Image.fromarray(image.numpy()).resize((280, 280), Image.Resampling.BICUBIC)
        back = read(written(np.asarray(large)), MAX_PIXELS)
        # A pixel's shift, as rounding the centre may make one, is the most that is allowed.
        shifts = [torch.roll(back[0], (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert min(float((to_unit(image) - shift).abs().mean()) for shift in shifts) < 0.1


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def hostile_png(width: int, height: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IEND", b"")


def hostile_jpeg(scans: int) -> bytes:
    """One that goes over its pixels again and again: the last of its scans so many times more."""
    content = written(drawing(512, 512, (5, 5, 400, 400)), "JPEG", progressive=True)[:-2]
    return content + content[content.rindex(b"\xff\xda") :] * scans + b"\xff\xd9"


def hostile_npz(header: str, content: bytes = b"", packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + content)
    return buffer.getvalue()


def bomb(packed: int, version: bytes) -> bytes:
    """An npz of 100 MB of header, or what may be one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        file.writestr("images.npy", b"\x93NUMPY" + version + struct.pack("<I", 100_000_000) + bytes(100_000_000))
    return buffer.getvalue()


SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    "content",
    [
        hostile_png(20_000, 20_000),
        hostile_png(28, 28, chunk(b"eXIf", b"II*\0"), chunk(b"IDAT", zlib.compress(bytes(29 * 28)))),
        hostile_jpeg(2000),
        hostile_npz("{'descr':("),
        hostile_npz(SHAPE % "(-1, 28, 28)", bytes(20_000_000)),
        hostile_npz(SHAPE % "(900000, 1, 1)", bytes(900_000)),
        hostile_npz(SHAPE % "(1, 28, 28)", b"short"),
        hostile_npz(SHAPE % "(1, 99999, 99999)"),
        hostile_npz(SHAPE % "(2, 28, 28)", bytes(2 * 784)),
    ],
)
def test_hostile_files_are_refused_and_cost_nothing(content: bytes) -> None:
    with pytest.raises(InvalidParameter):
        read(content, MAX_PIXELS)


@pytest.mark.parametrize(
    ("packed", "version"), [(zipfile.ZIP_BZIP2, b"\1\0"), (zipfile.ZIP_LZMA, b"\1\0"), (zipfile.ZIP_DEFLATED, b"\2\0")]
)
def test_an_archive_is_not_unpacked_beyond_what_it_may_hold(packed: int, version: bytes) -> None:
    content = bomb(packed, version)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidParameter):
            read(content, MAX_PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_pixels_of_all_files_together_are_bounded() -> None:
    content = written(drawing(600, 600, (100, 100, 300, 200)))
    with pytest.raises(InvalidParameter, match="360000 pixels where 280000 more may come"):
        asyncio.run(uploads.read([content] * 3, max_images=10, max_pixels=MAX_PIXELS))
