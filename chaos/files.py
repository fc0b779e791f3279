"""Files that are odd and good, and files that mean harm."""

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
    """A file, and the grey values [28, 28] that it holds; None where it is to be refused."""

    name: str
    data: bytes
    pixels: np.ndarray[Any, Any] | None = None


GREY = np.zeros((28, 28), np.uint8)
GREY[4:24, 9:19] = np.arange(200, dtype=np.uint8).reshape(20, 10) + 50


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunks(width: int, height: int, *more: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """A PNG of these chunks behind a header that says so."""
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    made = ((b"IHDR", head), *more, (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in made
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def archive(array: Any, name: str = "images", **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array}, **options)
    return buffer.getvalue()


def zipped(data: bytes, packed: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        file.writestr("images.npy", data)
    return buffer.getvalue()


@cache
def corpus() -> tuple[File, ...]:
    """Files that are odd and good, and files that mean harm."""
    grey, wide = Image.fromarray(GREY), GREY.astype(np.uint16)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    palette = grey.convert("P")
    shade = grey.convert("LA")
    shade.putalpha(Image.fromarray((GREY > 100).astype(np.uint8) * 255))
    other = Image.fromarray(255 - GREY)
    rows, long = zlib.compress(bytes(29 * 28)), zlib.compress(bytes(10**8))
    jpeg = saved(Image.fromarray(np.kron(GREY, np.ones((20, 20), np.uint8))), "JPEG", progressive=True)
    scans = jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 300 + jpeg[-2:]
    plain = archive(GREY[None])
    bomb = b"\x93NUMPY\x02\0" + struct.pack("<I", 2**29) + bytes(2**26)
    return (
        File("PNG", png(GREY), GREY),
        File("PNG of 16 bits", saved(Image.fromarray(wide * 257)), GREY),
        File("PNG of one bit", saved(Image.fromarray(GREY > 99)), (GREY > 99).astype(np.uint8) * 255),
        File("PNG with a palette", saved(palette), GREY),
        File("PNG with a transparent colour of its palette", saved(palette, transparency=0), GREY),
        File("PNG with alpha", saved(shade), np.where(GREY > 100, GREY, 0)),
        File("PNG turned by EXIF", saved(grey, exif=turned), np.rot90(GREY, -1)),
        File("PNG that is animated", saved(grey, save_all=True, append_images=[other]), GREY),
        File("PNG with a zip behind it", png(GREY) + plain, GREY),
        File("npz", plain, GREY),
        File("npz in Fortran's order", archive(np.asfortranarray(GREY[None])), GREY),
        File("npz with a pickle beside it", archive(GREY[None], other=np.array([{}], object)), GREY),
        File("JPEG in CMYK", saved(grey.convert("RGB").convert("CMYK"), "JPEG", quality=100), GREY),
        File("JPEG turned by EXIF", saved(grey, "JPEG", quality=100, exif=turned), np.rot90(GREY, -1)),
        File("PNG whose pixels go on for 100 MB", chunks(28, 28, (b"IDAT", long)), GREY * 0),
        File("nothing", b""),
        *(File(kind, saved(grey, kind)) for kind in ("GIF", "WEBP", "TIFF", "BMP")),
        File("GIF that is animated", saved(grey, "GIF", save_all=True, append_images=[other])),
        File("WEBP that is animated", saved(grey, "WEBP", save_all=True, append_images=[other])),
        *(File(f"PNG cut off after {cut} bytes", png(GREY)[:cut]) for cut in (8, 20, 40, 100)),
        File("JPEG cut off", jpeg[: len(jpeg) // 2]),
        File("JPEG of 300 scans", scans),
        File("PNG of no pixels", chunks(0, 0)),
        File("PNG of 2^31 by 2^31", chunks(2**31 - 1, 2**31 - 1, (b"IDAT", rows))),
        File("PNG of 20,000 by 20,000", chunks(20_000, 20_000, (b"IDAT", rows))),
        File("PNG with 100 MB of text", chunks(28, 28, (b"zTXt", b"a\0\0" + long), (b"IDAT", rows))),
        File("PNG with 100 MB of profile", chunks(28, 28, (b"iCCP", b"a\0\0" + long), (b"IDAT", rows))),
        File("PNG with half an EXIF", chunks(28, 28, (b"eXIf", b"II*\0"), (b"IDAT", rows))),
        File("PNG of white", png(np.full((50, 50), 255, np.uint8))),
        *(File(f"npz of {array.dtype} {list(array.shape)}", archive(array)) for array in (
            GREY[None] / 255, np.full((1, 28, 28), np.nan), np.array([{}], object), GREY, GREY[:0, None],
            GREY[None] > 9, GREY[None].astype(np.int8))),
        File("npz without images", archive(GREY[None], name="x")),
        File("npz packed by bzip2, 64 MB", zipped(bytes(2**26), zipfile.ZIP_BZIP2)),
        File("npz packed by LZMA, 64 MB", zipped(bytes(2**26), zipfile.ZIP_LZMA)),
        File("npz with a header of 64 MB", zipped(bomb, zipfile.ZIP_DEFLATED)),
        File("zip of nothing", zipped(b"", zipfile.ZIP_STORED)),
        File("zip cut off", plain[:-30]),
        File("pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    )  # fmt: skip
