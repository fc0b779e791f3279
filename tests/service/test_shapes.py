"""Every family at several sizes, in grey and in colour: loaded, served, generated, encoded and interpolated."""

import base64
import dataclasses
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image, ImageSequence

from models import families, store
from service.app import create_app
from service.settings import Settings
from tests.conftest import manifest_of, small
from tests.service.conftest import arrays, asgi_client, picture, pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHAPES = ((1, 28, 28), (3, 32, 32), (3, 48, 64), (1, 8, 8))
CLASSES = ("pizza", "Pizza", "hot dog", "a/b", "CON", "über", "..", "7", "猫", "10")
FOLDERS = ("pizza", "Pizza (2)", "hot dog", "a_b", "CON_", "über", "__", "7", "猫", "10")
MODELS = {f"{name}-{c}x{h}x{w}": (name, (c, h, w)) for c, h, w in SHAPES for name in families.names()}
ENCODERS = [model for model, (name, _) in MODELS.items() if families.get(name).encodes]
CONDITIONAL, ENCODER = "flow-3x48x64", "vae-3x48x64"


@pytest.fixture(scope="module")
def weights_of_all_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small untrained weights of every family for each shape."""
    root = tmp_path_factory.mktemp("shapes")
    for model, (name, shape) in MODELS.items():
        family = small(name, shape).for_sampling()
        manifest = dataclasses.replace(
            manifest_of(family),
            classes=CLASSES if family.classes else (),
            dataset={"name": "none", "background": "#ff0000"},
            uploads="digit" if shape == (1, 28, 28) else "picture",
            defaults={"steps": 2} if family.steps.maximum > 1 else {},
        )
        store.save(root / model, family, manifest, b"")
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(weights_of_all_shapes: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(weights=weights_of_all_shapes, device="cpu", max_batch_size=4, max_images=64))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield client


def image_shape(model: str) -> tuple[int, ...]:
    """[H, W], or [H, W, 3] in colour."""
    channels, height, width = MODELS[model][1]
    return (height, width) if channels == 1 else (height, width, channels)


def as_model(image: Image.Image, model: str) -> np.ndarray:
    """A decoded picture in the channels of a model; WebP and GIF have no grey pictures."""
    return np.asarray(image.convert("L" if MODELS[model][1][0] == 1 else "RGB"))


def upload(model: str, seed: int = 0) -> tuple[str, tuple[str, bytes]]:
    """A form field with a smooth random picture of the model's own shape, black at its border."""
    channels, height, width = MODELS[model][1]
    small_image = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(small_image).resize((width - 4, height - 4))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, (2, 2))
    buffer = io.BytesIO()
    canvas.convert("L" if channels == 1 else "RGB").save(buffer, "PNG")
    return ("image", ("picture.png", buffer.getvalue()))


@pytest.mark.parametrize("model", MODELS)
async def test_every_format_holds_the_same_images(client: httpx.AsyncClient, model: str) -> None:
    shape, conditional = image_shape(model), families.get(MODELS[model][0]).conditional

    async def get(format_: str, **query: Any) -> httpx.Response:
        named = {"label": ["a/b", "Pizza"]} if conditional else {}
        query = {"model": model, "seed": 3, "n": 2, "format": format_, **named, **query}
        response = await client.get("/generate", params=query)
        assert response.status_code == 200, response.text
        return response

    npz = arrays(await get("npz"))
    images = npz["images"]
    assert (images.shape, images.dtype) == ((2, *shape), np.uint8)
    assert npz["labels"].tolist() == ([3, 1] if conditional else [-1, -1])
    assert npz.get("classes", np.array([])).tolist() == (list(CLASSES) if conditional else [])
    grid = np.concatenate(list(images), axis=1)
    assert np.array_equal(pixels(await get("png")), grid)
    assert np.array_equal(as_model(Image.open(io.BytesIO((await get("webp")).content)), model), grid)
    with zipfile.ZipFile(io.BytesIO((await get("zip")).content)) as file:
        names = ["a_b/00000.png", "Pizza (2)/00001.png"] if conditional else ["00000.png", "00001.png"]
        assert file.namelist() == names
        assert np.array_equal([picture(file.read(name)) for name in names], images)
    items = (await get("json")).json()["images"]
    assert [item["class"] for item in items] == (["a/b", "Pizza"] if conditional else [None, None])
    assert np.array_equal([picture(base64.b64decode(item["png"])) for item in items], images)
    assert np.array_equal(
        pixels(await get("png", n=1, first=1, **({"label": "Pizza"} if conditional else {}))), images[1]
    )


@pytest.mark.parametrize("model", MODELS)
async def test_images_are_interpolated(client: httpx.AsyncClient, model: str) -> None:
    url, (height, width, *channels) = f"/interpolate?model={model}&seed=1&seed=2&frames=3", image_shape(model)
    images = arrays(await client.get(f"{url}&format=npz"))["images"]
    strip = pixels(await client.get(f"{url}&format=png"))
    assert strip.shape == (height, 3 * width, *channels)
    assert np.array_equal(strip, np.concatenate(list(images), axis=1))
    for format_ in ("gif", "webp"):
        with Image.open(io.BytesIO((await client.get(f"{url}&format={format_}")).content)) as file:
            frames = [as_model(frame, model).astype(int) for frame in ImageSequence.Iterator(file)]
        assert len(frames) == 4
        # A frame of a GIF has at most 256 colours.
        tolerance = 10 if channels and format_ == "gif" else 0
        assert np.abs(np.array(frames) - images[[0, 1, 2, 1]]).mean() <= tolerance


@pytest.mark.parametrize("model", ENCODERS)
async def test_uploads_are_encoded_decoded_and_interpolated(client: httpx.AsyncClient, model: str) -> None:
    shape, files = image_shape(model), [upload(model), upload(model, seed=1)]
    encoded = (await client.post(f"/encode?model={model}", files=files)).json()
    codes = np.array(encoded["codes"])
    assert codes.shape == (2, *encoded["shape"])
    decoded = await client.post("/decode", json={"model": model, "codes": encoded["codes"], "format": "npz"})
    response = await client.post(f"/reconstruct?model={model}&format=npz", files=files)
    reconstructed = arrays(response)
    assert np.array_equal(arrays(decoded)["images"], reconstructed["images"])
    assert reconstructed["images"].shape == (2, *shape)
    originals = np.array([picture(content) for _, (_, content) in files])
    errors = np.square(reconstructed["images"] / 255 - originals / 255).reshape(2, -1).mean(1)
    assert reconstructed["errors"] == pytest.approx(errors)
    frames = arrays(await client.post(f"/interpolate?model={model}&frames=2&format=npz", files=files))["images"]
    assert frames.shape == (2, *shape)


async def test_many_images_in_colour_are_streamed(client: httpx.AsyncClient) -> None:
    query = {"model": CONDITIONAL, "seed": 1, "n": 20}
    images = arrays(await client.get("/generate", params={**query, "format": "npz"}))["images"]
    with zipfile.ZipFile(
        io.BytesIO((await client.get("/generate", params={**query, "format": "zip"})).content)
    ) as file:
        folders, names = zip(*(name.split("/") for name in file.namelist()), strict=True)
        assert set(folders) <= set(FOLDERS)
        assert list(names) == [f"{i:05d}.png" for i in range(20)]
        assert np.array_equal([picture(file.read(name)) for name in file.namelist()], images)


async def test_events_hold_previews_and_images_in_colour(client: httpx.AsyncClient) -> None:
    query = {"model": CONDITIONAL, "label": "猫", "previews": True, "format": "events"}
    lines = (await client.get("/generate", params=query)).text.splitlines()
    events = [
        (one.removeprefix("event: "), json.loads(two.removeprefix("data: ")))
        for one, two in zip(lines[::3], lines[1::3], strict=True)
    ]
    pngs = {name: picture(base64.b64decode(data["png"])) for name, data in events if "png" in data}
    assert {name: image.shape for name, image in pngs.items()} == {"preview": (48, 64, 3), "image": (48, 64, 3)}
    assert next(data for name, data in events if name == "image")["class"] == "猫"


# -- uploads of pictures -----------------------------------------------------------------------------------------------


def file_of(image: Image.Image | np.ndarray, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format_)
    return buffer.getvalue()


def npz_of(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=images)
    return buffer.getvalue()


async def codes_of(client: httpx.AsyncClient, model: str, content: bytes) -> np.ndarray:
    response = await client.post(f"/encode?model={model}", files={"image": content})
    assert response.status_code == 200, response.text
    return np.array(response.json()["codes"])


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A picture of the shape of ENCODER."""
    return picture(upload(ENCODER)[1][1])


async def test_uploads_are_cropped_and_scaled(client: httpx.AsyncClient, photo: np.ndarray) -> None:
    expected = await codes_of(client, ENCODER, file_of(photo))
    doubled = np.kron(photo, np.ones((2, 2, 1), np.uint8))
    wide = np.concatenate((doubled[:, :30], doubled, doubled[:, :30]), axis=1)
    other = await codes_of(client, ENCODER, file_of(255 - photo))
    for content in (file_of(doubled), file_of(wide)):
        difference = np.abs(await codes_of(client, ENCODER, content) - expected)
        assert difference.max() < 0.1 * np.abs(other - expected).max()


async def test_transparency_shows_the_background_of_the_data(client: httpx.AsyncClient, photo: np.ndarray) -> None:
    transparent = Image.fromarray(photo).convert("RGBA")
    transparent.putalpha(Image.fromarray(np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(48, 0)))
    photo = photo.copy()
    photo[:, 32:] = (255, 0, 0)
    assert np.array_equal(
        await codes_of(client, ENCODER, file_of(transparent)), await codes_of(client, ENCODER, file_of(photo))
    )


async def test_an_npz_holds_pictures_in_grey_or_in_colour(client: httpx.AsyncClient, photo: np.ndarray) -> None:
    expected = await codes_of(client, ENCODER, file_of(photo))
    assert np.array_equal(await codes_of(client, ENCODER, npz_of(photo[None].repeat(2, 0))), expected.repeat(2, 0))
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    assert np.array_equal(
        await codes_of(client, ENCODER, npz_of(grey[None])), await codes_of(client, ENCODER, file_of(grey))
    )
    digit = np.zeros((28, 28), np.uint8)
    digit[5:20, 9:13] = 255
    in_color = npz_of(np.repeat(digit[None, :, :, None], 3, axis=3))
    codes = [await codes_of(client, "vae-1x28x28", content) for content in (in_color, npz_of(digit[None]))]
    assert np.array_equal(*codes)
    refused = await client.post(f"/encode?model={ENCODER}", files={"image": npz_of(photo[None, ..., :2])})
    assert "must be uint8 [n, H, W] or [n, H, W, 3]" in problem(refused, 422)


async def test_white_and_empty_pictures_are_pictures(client: httpx.AsyncClient) -> None:
    for value in (0, 255):
        await codes_of(client, ENCODER, file_of(np.full((50, 50, 3), value, np.uint8)))


async def test_models_of_pictures_take_no_polarity(client: httpx.AsyncClient, photo: np.ndarray) -> None:
    files = [("image", file_of(photo))] * 2
    for path in ("encode", "reconstruct", "interpolate"):
        refused = await client.post(f"/{path}?model={ENCODER}&polarity=dark-on-light", files=files)
        assert problem(refused, 422) == f"polarity: only for models of digits; {ENCODER} takes pictures as they are"
        assert (await client.post(f"/{path}?model={ENCODER}&polarity=auto", files=files)).status_code == 200
