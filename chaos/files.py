"""Image files and archives for uploads: unusual but valid ones, and broken or hostile ones."""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from service.codecs.png import png


@dataclass(frozen=True)
class File:
    """A file to upload."""

    name: str
    data: bytes
    pixels: np.ndarray[Any, Any] | None = None
    """The grey values [28, 28] that it holds. None if the service must refuse it."""


GREY = np.zeros((28, 28), np.uint8)
GREY[4:24, 9:19] = np.arange(200, dtype=np.uint8).reshape(20, 10) + 50


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with `chunks` after a header that states this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def npz(array: Any, name: str = "images", **others: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array}, **others)
    return buffer.getvalue()


def zipped(data: bytes, compression: int) -> bytes:
    """Return a zip with `data` as images.npy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("images.npy", data)
    return buffer.getvalue()


@cache
def corpus() -> tuple[File, ...]:
    """Return all files."""
    grey, wide = Image.fromarray(GREY), GREY.astype(np.uint16)
    rotated = Image.Exif()
    rotated[ExifTags.Base.Orientation] = 6
    palette = grey.convert("P")
    translucent = grey.convert("LA")
    translucent.putalpha(Image.fromarray((GREY > 100).astype(np.uint8) * 255))
    inverted = Image.fromarray(255 - GREY)
    rows, zeros = zlib.compress(bytes(29 * 28)), zlib.compress(bytes(10**8))
    jpeg = encoded(Image.fromarray(np.kron(GREY, np.ones((20, 20), np.uint8))), "JPEG", progressive=True)
    scans = jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 300 + jpeg[-2:]
    valid_npz = npz(GREY[None])
    long_header = b"\x93NUMPY\x02\0" + struct.pack("<I", 2**29) + bytes(2**26)
    return (
        File("PNG", png(GREY), GREY),
        File("PNG with 16 bits", encoded(Image.fromarray(wide * 257)), GREY),
        File("PNG with one bit", encoded(Image.fromarray(GREY > 99)), (GREY > 99).astype(np.uint8) * 255),
        File("PNG with a palette", encoded(palette), GREY),
        File("PNG with a transparent palette colour", encoded(palette, transparency=0), GREY),
        File("PNG with alpha", encoded(translucent), np.where(GREY > 100, GREY, 0)),
        File("PNG rotated by EXIF", encoded(grey, exif=rotated), np.rot90(GREY, -1)),
        File("animated PNG", encoded(grey, save_all=True, append_images=[inverted]), GREY),
        File("PNG followed by a zip", png(GREY) + valid_npz, GREY),
        File("npz", valid_npz, GREY),
        File("npz in Fortran order", npz(np.asfortranarray(GREY[None])), GREY),
        File("npz with a pickle beside it", npz(GREY[None], other=np.array([{}], object)), GREY),
        File("JPEG in CMYK", encoded(grey.convert("RGB").convert("CMYK"), "JPEG", quality=100), GREY),
        File("JPEG rotated by EXIF", encoded(grey, "JPEG", quality=100, exif=rotated), np.rot90(GREY, -1)),
        File("PNG with 100 MB of pixels", png_of(28, 28, (b"IDAT", zeros)), GREY * 0),
        File("empty file", b""),
        *(File(kind, encoded(grey, kind), GREY) for kind in ("GIF", "TIFF", "BMP")),
        File("WebP", encoded(grey, "WEBP", lossless=True), GREY),
        File("animated GIF", encoded(grey, "GIF", save_all=True, append_images=[inverted]), GREY),
        File("animated WebP", encoded(grey, "WEBP", lossless=True, save_all=True, append_images=[inverted]), GREY),
        File("ICO", encoded(grey, "ICO")),
        *(File(f"PNG truncated to {cut} bytes", png(GREY)[:cut]) for cut in (8, 20, 40, 100)),
        File("truncated JPEG", jpeg[: len(jpeg) // 2]),
        File("JPEG of 300 scans", scans),
        File("PNG without pixels", png_of(0, 0)),
        File("PNG of 2^31 by 2^31", png_of(2**31 - 1, 2**31 - 1, (b"IDAT", rows))),
        File("PNG of 20,000 by 20,000", png_of(20_000, 20_000, (b"IDAT", rows))),
        File("PNG with 100 MB of text", png_of(28, 28, (b"zTXt", b"a\0\0" + zeros), (b"IDAT", rows))),
        File("PNG with a colour profile of 100 MB", png_of(28, 28, (b"iCCP", b"a\0\0" + zeros), (b"IDAT", rows))),
        File("PNG with truncated EXIF", png_of(28, 28, (b"eXIf", b"II*\0"), (b"IDAT", rows))),
        File("white PNG", png(np.full((50, 50), 255, np.uint8))),
        *(File(f"npz of {array.dtype} {list(array.shape)}", npz(array)) for array in (
            GREY[None] / 255, np.full((1, 28, 28), np.nan), np.array([{}], object), GREY, GREY[:0, None],
            GREY[None] > 9, GREY[None].astype(np.int8))),
        File("npz without images", npz(GREY[None], name="x")),
        File("npz compressed by bzip2, 64 MB", zipped(bytes(2**26), zipfile.ZIP_BZIP2)),
        File("npz compressed by LZMA, 64 MB", zipped(bytes(2**26), zipfile.ZIP_LZMA)),
        File("npz with a header of 64 MB", zipped(long_header, zipfile.ZIP_DEFLATED)),
        File("empty zip member", zipped(b"", zipfile.ZIP_STORED)),
        File("truncated zip", valid_npz[:-30]),
        File("pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    )  # fmt: skip
