"""Formats of uploads: what each file holds, whichever format, depth, size and transparency it has."""

import asyncio
import io
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from models.pixels import to_uint8
from pictures import decoding
from service.api.limits import MAX_PARAMETER_BYTES, max_body_bytes
from service.codecs import uploads
from service.codecs.normalization import Polarity
from service.codecs.uploads import DigitPreparation
from service.errors import InvalidParameter
from service.settings import Settings
from tests.service.conftest import problem

MAX_PIXELS = Settings.model_fields["max_pixels"].default
READABLE = "not a readable PNG, JPEG, WebP, GIF, BMP, TIFF or npz with `images`"

SMALL = np.zeros((28, 28), np.uint8)
SMALL[4:24, 9:19] = np.arange(200, dtype=np.uint8).reshape(20, 10) + 50
LARGE = np.zeros((120, 90), np.uint8)
LARGE[20:100, 30:45] = 255
LARGE[85:100, 30:70] = 255


def encode(image: Image.Image | np.ndarray, format_: str = "PNG", **options: Any) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format_, **options)
    return buffer.getvalue()


def read(content: bytes, polarity: Polarity = "auto", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The only image [28, 28] uint8 in a file."""
    (image,) = asyncio.run(uploads.read([content], DigitPreparation(polarity), max_images=1, max_pixels=max_pixels))
    assert image.dtype == torch.float32
    return to_uint8(image).numpy().reshape(28, 28)


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        *(("TIFF", {"compression": name}) for name in (None, "packbits", "tiff_lzw", "tiff_adobe_deflate")),
    ],
    ids=str,
)
def test_lossless_formats_give_the_same_image(format_: str, options: dict[str, Any]) -> None:
    for mode in ("L", "RGB", "RGBA" if format_ == "WEBP" else "P"):
        content = encode(Image.fromarray(SMALL).convert(mode), format_, **options)
        assert np.array_equal(read(content), SMALL), mode


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_lossy_formats_give_nearly_the_same_image(format_: str) -> None:
    assert np.abs(read(encode(SMALL, format_, quality=95)) - SMALL.astype(int)).mean() < 3


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_frames_the_first_is_used(format_: str, options: dict[str, Any]) -> None:
    others = [Image.fromarray(np.rot90(SMALL, i).copy()) for i in (1, 2)]
    assert np.array_equal(read(encode(SMALL, format_, save_all=True, append_images=others, **options)), SMALL)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(format_: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options: dict[str, Any] = {"lossless": True} if format_ == "WEBP" else {"quality": 100} if format_ == "JPEG" else {}
    content = encode(SMALL, format_, exif=exif, **options)
    assert np.abs(read(content) - np.rot90(SMALL, -1).astype(int)).max() <= 3


def test_other_formats_are_refused_with_the_list_of_formats() -> None:
    Image.init()
    for format_ in ("ICO", "PPM", "TGA", "PDF", *({"AVIF"} & Image.SAVE.keys())):
        with pytest.raises(InvalidParameter, match=READABLE):
            read(encode(SMALL, format_))


# -- depth -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_pictures_may_hold_values_of_fewer_bits(bits: int, format_: str) -> None:
    drawing = np.where(SMALL > 0, 255, 0).astype(np.uint8)
    values = drawing.astype(np.uint16) << (bits - 8)
    assert np.array_equal(read(encode(values, format_)), drawing)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_pictures_are_read(white: int) -> None:
    drawing = np.where(LARGE > 0, 255, 0).astype(np.uint8)
    assert np.array_equal(read(encode((drawing / 255 * white).astype(np.float32), "TIFF")), read(encode(drawing)))


def test_pictures_of_one_bit_are_read() -> None:
    for format_ in ("PNG", "BMP", "TIFF", "GIF"):
        assert np.array_equal(read(encode(Image.fromarray(SMALL > 99), format_)), np.where(SMALL > 99, 255, 0))


# -- transparency ------------------------------------------------------------------------------------------------------


def on_transparent(drawing: np.ndarray, grey: int) -> Image.Image:
    """A drawing in ink of one colour on a transparent background, as a canvas exports it."""
    ink = Image.new("RGBA", drawing.shape[::-1], (grey, grey, grey, 0))
    ink.putalpha(Image.fromarray(drawing))
    return ink


@pytest.mark.parametrize("drawing", [SMALL, LARGE], ids=["28x28", "90x120"])
@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_ink_on_a_transparent_background_contrasts(drawing: np.ndarray, grey: int, format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    image = read(encode(on_transparent(drawing, grey), format_, **options))
    assert np.abs(image - read(encode(drawing)).astype(int)).max() <= 1


def test_a_gif_with_a_transparent_background_contrasts() -> None:
    palette = Image.fromarray((LARGE > 0).astype(np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])
    assert np.array_equal(read(encode(palette, "GIF", transparency=0)), read(encode(LARGE)))


def test_polarity_determines_the_background_of_a_transparent_picture() -> None:
    middle_grey = encode(on_transparent(np.where(SMALL > 0, 255, 0).astype(np.uint8), 120))
    dark, light = read(middle_grey, "dark-on-light"), read(middle_grey, "light-on-dark")
    assert (dark.max(), light.max()) == (135, 120)
    assert np.array_equal(read(middle_grey), dark)


def test_a_fully_transparent_picture_is_empty() -> None:
    with pytest.raises(InvalidParameter, match="the picture is empty"):
        read(encode(on_transparent(np.zeros((50, 50), np.uint8), 0)))


# -- polarity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawing", [SMALL, LARGE], ids=["28x28", "90x120"])
def test_black_on_white_is_inverted_at_every_size(drawing: np.ndarray) -> None:
    assert np.array_equal(read(encode(255 - drawing)), read(encode(drawing)))


def test_polarity_overrides_what_the_border_says() -> None:
    inverted = 255 - SMALL
    assert np.array_equal(read(encode(inverted), "light-on-dark"), inverted)
    assert np.array_equal(read(encode(inverted), "dark-on-light"), SMALL)
    assert np.array_equal(read(encode(SMALL), "light-on-dark"), SMALL)
    assert np.array_equal(read(encode(SMALL), "dark-on-light"), inverted)


def test_polarity_decides_between_two_readings_of_a_photograph() -> None:
    photo = np.full((120, 180), 130, np.uint8)
    photo[30:90, 40:50], photo[30:90, 110:140] = 230, 30
    widths = [np.count_nonzero(read(encode(photo), polarity).max(0) > 60) for polarity in ("light-on-dark", "auto")]
    assert widths[0] < widths[1]
    assert np.array_equal(read(encode(photo), "dark-on-light"), read(encode(photo)))


# -- large pictures ----------------------------------------------------------------------------------------------------


def megapixels(width: int, height: int, grey: int = 230) -> Image.Image:
    """A photograph of an L on even paper."""
    digit = Image.fromarray(255 - LARGE).resize((width // 3, height // 2))
    paper = Image.new("L", (width, height), grey)
    paper.paste(digit.point(lambda value: min(value, grey)), (width // 3, height // 4))
    return paper


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {"compress_level": 1}),
        ("WEBP", {"method": 0}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=str,
)
def test_photographs_of_12_megapixels_are_read(format_: str, options: dict[str, Any]) -> None:
    expected = read(encode(megapixels(1008, 756)))
    image = read(encode(megapixels(4032, 3024), format_, **options))
    shifts = [np.roll(image.astype(int), (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert min(np.abs(shift - expected).mean() for shift in shifts) < 4


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_large_pictures_are_reduced_before_they_are_analysed(format_: str) -> None:
    content = encode(megapixels(4032, 3024).convert("RGB"), format_)
    longer, shorter = decoding.REDUCED_SIDES
    pixels = decoding.decode(content, channels=1)
    assert longer <= max(pixels.shape) < 2 * longer
    assert min(pixels.shape) >= shorter


@pytest.mark.parametrize("size", [(1, 5_000_000), (2_600_000, 2)])
def test_large_pictures_of_extreme_shapes_are_read_or_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidParameter):
        read(encode(Image.new("L", size, 200)))


def test_the_defaults_accept_two_photographs_of_12_megapixels() -> None:
    assert MAX_PIXELS >= 2 * 4032 * 3024


def test_only_forms_may_have_large_bodies() -> None:
    settings = Settings(_env_file=None)

    def limit(content_type: bytes) -> int:
        return max_body_bytes({"type": "http", "headers": [(b"content-type", content_type)]}, settings)

    assert limit(b"multipart/form-data; boundary=x") == settings.max_body_bytes == 16 * 2**20
    assert limit(b"application/json") == max_body_bytes({"type": "http", "headers": []}, settings)
    assert limit(b"application/json") == MAX_PARAMETER_BYTES == 4 * 2**20


# -- JPEG scans --------------------------------------------------------------------------------------------------------


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `scans`."""
    content = encode(LARGE, "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (scans - content.count(b"\xff\xda")) + content[-2:]


def test_a_motion_photo_is_read() -> None:
    film = b"\x00\x00\x00\x18ftypmp42" + b"\xff\xda\x00\x08\xff\xd8" * 1000
    photo = encode(LARGE, "JPEG")
    assert np.array_equal(read(photo + film), read(photo))


def test_thumbnails_are_not_counted_as_scans() -> None:
    photo = encode(LARGE, "JPEG")
    thumbnail = encode(SMALL, "JPEG") * 60
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    assert np.array_equal(read(photo[:2] + segment + photo[2:]), read(photo))


@pytest.mark.parametrize("fill", [b"", b"\xff" * 5])
def test_many_scans_are_refused(fill: bytes) -> None:
    assert decoding._jpeg_scans(jpeg_of_scans(32)) == 32
    content = jpeg_of_scans(33).replace(b"\xff\xda", fill + b"\xff\xda")
    with pytest.raises(InvalidParameter, match="more than 32 scans"):
        read(content)


# -- hostile files -----------------------------------------------------------------------------------------------------


def tiff_with_tile(side: int) -> bytes:
    """A TIFF of 64x64 white pixels in one tile, which claims to be `side` pixels wide and high."""
    tile = zlib.compress(b"\xff" * 64 * 64)
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + directory


def test_a_tiff_with_a_huge_tile_is_refused() -> None:
    assert decoding.decode(tiff_with_tile(64)).min() == 255
    with pytest.raises(InvalidParameter, match="2500000000 pixels, but at most"):
        read(tiff_with_tile(50_000))


def test_a_tiff_with_an_unusual_compression_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="save the TIFF without compression, or with LZW or deflate"):
        read(encode(SMALL, "TIFF", compression="lzma"))


@pytest.mark.parametrize("format_", ["GIF", "BMP", "WEBP", "TIFF", "PNG"])
def test_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    content = encode(Image.new("L", (400, 300)), format_)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(InvalidParameter, match="120000 pixels, but at most 100000 more are allowed"):
        read(content, max_pixels=100_000)


def test_a_gif_whose_frame_exceeds_its_screen_is_counted_by_its_frame() -> None:
    content = bytearray(encode(Image.new("L", (400, 300)), "GIF"))
    content[6:10] = struct.pack("<HH", 20, 20)
    with pytest.raises(InvalidParameter, match="120000 pixels, but at most 100000 more are allowed"):
        read(bytes(content), max_pixels=100_000)


def test_a_webp_whose_frame_differs_from_its_canvas_is_refused() -> None:
    frames = [Image.new("RGB", (400, 300), (i, 0, 0)) for i in (0, 200)]
    content = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    position = content.index(b"VP8X") + 12
    small = content[:position] + struct.pack("<I", 19)[:3] + struct.pack("<I", 19)[:3] + content[position + 6 :]
    with pytest.raises(InvalidParameter, match="damaged or not complete"):
        read(small)


# -- requests ----------------------------------------------------------------------------------------------------------

REQUESTS = {"/encode": {"format": "json"}, "/reconstruct": {"format": "npz"}, "/interpolate": {"format": "npz"}}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", REQUESTS)
async def test_every_route_with_uploads_takes_a_polarity(client: httpx.AsyncClient, path: str) -> None:
    async def send(picture: np.ndarray, **parameters: str) -> bytes:
        files = [("image", ("x", encode(picture))), ("image", ("y", encode(SMALL)))]
        response = await client.post(path, params={"model": "vae", **REQUESTS[path], **parameters}, files=files)
        assert response.status_code == 200, response.text
        return response.content

    plain = await send(SMALL)
    assert await send(255 - SMALL) == plain == await send(SMALL, polarity="light-on-dark")
    assert await send(255 - SMALL, polarity="light-on-dark") != plain


@pytest.mark.asyncio(loop_scope="module")
async def test_polarity_may_be_a_form_field(client: httpx.AsyncClient) -> None:
    files = {"image": encode(255 - SMALL)}
    url = "/encode?model=vae"
    as_query = await client.post(f"{url}&polarity=light-on-dark", files=files)
    assert (await client.post(url, files=files, data={"polarity": "light-on-dark"})).json() == as_query.json()
    assert (await client.post(url, files=files)).json() != as_query.json()


@pytest.mark.asyncio(loop_scope="module")
async def test_invalid_uses_of_polarity_are_refused(client: httpx.AsyncClient) -> None:
    files = {"image": encode(SMALL)}
    unknown = await client.post("/encode?model=vae&polarity=black", files=files)
    assert "'auto', 'dark-on-light' or 'light-on-dark'" in problem(unknown, 422)
    unused = await client.post("/interpolate?model=vae&seed=1&seed=2&polarity=auto")
    assert problem(unused, 422) == "polarity: only with uploaded images"


@pytest.mark.asyncio(loop_scope="module")
async def test_openapi_documents_polarity(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in REQUESTS:
        names = {parameter["name"]: parameter["schema"] for parameter in paths[path]["post"]["parameters"]}
        assert names["polarity"]["enum"] == ["auto", "dark-on-light", "light-on-dark"]
    assert "WebP, GIF, BMP, TIFF" in paths["/encode"]["post"]["description"]
