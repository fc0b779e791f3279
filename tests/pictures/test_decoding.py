"""Pictures of every common format are decoded right, and hostile files cost little."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pictures import decoding
from pictures.decoding import FORMATS, MAX_JPEG_SCANS, UnreadablePicture, count_pixels, decode, to_channels

RED, GREY = (255, 0, 0), 100


def encoded(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded_in_colour(kind: str) -> None:
    options = {"lossless": True} if kind == "WebP" else {}
    pixels = decode(encoded(Image.new("RGB", (20, 10), RED), kind, **options))
    assert pixels.shape == (10, 20, 3)
    assert abs(pixels.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_with_grey_pixels_is_grey(kind: str) -> None:
    pixels = decode(encoded(Image.new("RGB", (20, 10), (GREY, GREY, GREY)), kind))
    assert pixels.shape == (10, 20)
    assert set(pixels.flat) == {GREY}


def test_a_path_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (8, 8), GREY).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").mean() == GREY
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "b.png")


def test_the_number_of_channels_can_be_given() -> None:
    assert decode(encoded(Image.new("L", (8, 8), GREY)), channels=3).shape == (8, 8, 3)
    assert set(decode(encoded(Image.new("RGB", (8, 8), RED)), channels=1).flat) == {76}
    assert to_channels(np.full((8, 8, 3), RED, np.uint8), 1).mean() == 76


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_a_picture_is_upright_as_its_exif_says(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert pixels.shape == ((8, 16) if orientation < 5 else (16, 8))
    assert pixels[corner] > 250


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    pixels = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (pixels == RED).all()


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_show_the_background(mode: str) -> None:
    image = Image.new("RGBA", (2, 1))  # black, transparent
    image.putpixel((0, 0), (*RED, 255))
    data = encoded(image.convert(mode))
    assert decode(data)[0].tolist() == [list(RED), [255, 255, 255]]
    assert decode(data, background="#0a0b0c")[0].tolist() == [list(RED), [10, 11, 12]]


def test_half_transparent_pixels_are_mixed_with_the_background() -> None:
    assert decode(encoded(Image.new("LA", (2, 2), (0, 128))), background="white")[0, 0] == 127


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0)])
def test_a_contrasting_background_shows_what_is_drawn(ink: int, paper: int) -> None:
    image = Image.new("LA", (4, 4), (ink, 0))
    image.putpixel((1, 1), (ink, 255))
    pixels = decode(encoded(image), background=decoding.CONTRAST)
    assert pixels[1, 1] == ink
    assert pixels[0, 0] == paper


def test_an_unknown_background_is_an_error() -> None:
    for unknown in ("nocolour", "#12345678"):
        with pytest.raises(ValueError, match="use a name, such as white, or #rrggbb"):
            decode(encoded(Image.new("L", (8, 8))), background=unknown)


def test_16_bit_values_keep_their_leading_bits() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(decode(encoded(deep)), deep >> 8)
    assert np.array_equal(decode(encoded(deep, "TIFF")), deep >> 8)
    assert np.array_equal(decode(encoded(deep >> 8)), deep >> 8), "values that fit into 8 bits are kept"
    assert np.array_equal(decode(encoded(deep >> 4)), deep >> 8), "12 bits in a file of 16"


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG of grey with alpha [H, W, 2], colours [.., 3], or both [.., 4], of 16 bits, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_16_bits(values: np.ndarray, order: str = "<", deflate: bool = False) -> bytes:
    """A TIFF of colours [H, W, 3] of 16 bits in an order of bytes."""
    height, width, _ = values.shape
    content = values.astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if deflate else content
    # Width, height, the offset of the channels' depths, compression, RGB, the offset of the content, channels, ...
    tags = {256: width, 257: height, 258: 8, 259: 8 if deflate else 1, 262: 2, 273: 14, 277: 3, 278: height,
            279: len(content)}  # fmt: skip
    kinds = {258: (3, 3)}  # shorts, three of them
    entries = [struct.pack(f"{order}HHII", tag, *kinds.get(tag, (4, 1)), value) for tag, value in tags.items()]
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 14 + len(content))
    depths, count = struct.pack(f"{order}3H", 16, 16, 16), struct.pack(f"{order}H", len(tags))
    return start + depths + content + count + b"".join(entries) + bytes(4)


def test_16_bit_colours_keep_their_leading_bits() -> None:
    colors = np.array([[[0x1234, 0x5678, 0x9ABC], [0xFFFF, 0, 0x8000]]])
    for content in (png_of_16_bits(colors), tiff_of_16_bits(colors)):
        assert decode(content)[0].tolist() == [[0x12, 0x56, 0x9A], [0xFF, 0, 0x80]]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_16_bit_colours_may_hold_values_of_fewer_bits(bits: int) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    expected[0, 0] = 255
    values = expected << bits - 8
    files = [png_of_16_bits(values)]
    files += [tiff_of_16_bits(values, order, deflate) for order in "<>" for deflate in (False, True)]
    for content in files:
        assert np.array_equal(decode(content), expected)


def test_alpha_of_16_bits_has_a_depth_of_its_own() -> None:
    values = np.array([[[255, 0, 0, 65535], [0, 0, 255, 0]]])
    assert decode(png_of_16_bits(values))[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert decode(png_of_16_bits(values.clip(max=255)))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_16_bit_grey_with_alpha_keeps_its_leading_bits(bits: int) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 5))
    grey[0, 0] = 255
    low_bits = (1 << bits - 8) - 1
    values = np.stack([grey << bits - 8 | low_bits, np.full((6, 5), 65535)], axis=2)
    assert np.array_equal(decode(png_of_16_bits(values)), grey)


def test_alpha_of_16_bit_grey_has_a_depth_of_its_own() -> None:
    values = np.array([[[255, 65535], [0, 65535], [0, 0]]])
    for content in (png_of_16_bits(values), png_of_16_bits(values.clip(max=255))):
        assert decode(content)[0].tolist() == [255, 0, 255], "a transparent pixel is white, as the background"


def test_floats_up_to_1_are_shares_of_white() -> None:
    assert decode(encoded(np.array([[0, 0.5, 1]], np.float32), "TIFF"))[0].tolist() == [0, 127, 255]


def test_palettes_one_bit_and_cmyk_are_decoded() -> None:
    assert (decode(encoded(Image.new("RGB", (8, 8), RED).convert("P"))) == RED).all()
    assert decode(encoded(Image.new("1", (8, 8), 1))).mean() == 255
    assert (decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")) == RED).all()


def test_a_huge_picture_is_reduced_but_stays_larger_than_any_model() -> None:
    for size in ((3000, 2000), (16000, 300)):
        for kind in ("PNG", "JPEG"):
            pixels = decode(encoded(Image.new("RGB", size, RED), kind))
            assert min(pixels.shape[:2]) >= 256
            assert pixels.shape[1] >= 1000
            assert pixels.shape[0] * pixels.shape[1] <= 5_000_000
            assert abs(pixels.astype(int) - RED).max() <= 2


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    data = encoded(Image.new("1", (3000, 2000)))
    assert count_pixels(data) == 6_000_000
    with pytest.raises(UnreadablePicture, match="6000000 pixels, but at most 5000000 are allowed"):
        decode(data[:100], max_pixels=5_000_000)


@pytest.mark.parametrize("read", [decode, count_pixels])
def test_files_that_are_no_pictures_are_refused(read: Any) -> None:
    for data in (b"", b"text", b"PK\x03\x04", b"%PDF-1.4"):
        with pytest.raises(UnreadablePicture, match="not a readable PNG, JPEG, WebP, GIF, BMP or TIFF"):
            read(data)


def test_damaged_files_are_refused() -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(UnreadablePicture, match="the file is damaged or not complete"):
        decode(data[: len(data) // 2])


def test_jpegs_with_many_scans_are_refused() -> None:
    jpeg = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    start = jpeg.rindex(b"\xff\xda")
    scan = jpeg[start : jpeg.rindex(b"\xff\xd9")]
    with pytest.raises(UnreadablePicture, match=f"more than {MAX_JPEG_SCANS} scans"):
        decode(jpeg[:start] + scan * (MAX_JPEG_SCANS + 1) + b"\xff\xd9")


def test_tiffs_of_rare_compressions_are_refused() -> None:
    with pytest.raises(UnreadablePicture, match="save the TIFF without compression"):
        decode(encoded(Image.new("L", (8, 8)), "TIFF", compression="lzma"))
