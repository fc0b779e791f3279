"""The committed weights, served with the default settings."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch

from models import families, store
from models.base import Family
from service.app import create_app
from service.codecs.png import png
from service.settings import Settings
from tests.service.conftest import arrays, asgi_client, picture, pixels

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = store.list_weights(Settings().weights)
FAMILIES = {name: families.get(store.read_manifest(Settings().weights / name).family) for name in NAMES}
SEEDED = Path(__file__).parent / "seeded"
"""Responses to `seed=25&n=9` of earlier versions, by model, and the processor, torch and zlib that made them."""
ORIGIN = ["AuthenticAMD", "25", "17", "2.14.1", "1.2.13"]
ENCODERS = [name for name, family in FAMILIES.items() if family.encodes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(device="cpu"))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield client


async def test_all_committed_weights_are_ready(client: httpx.AsyncClient) -> None:
    body = (await client.get("/readyz")).json()
    assert body["status"] == "ready"
    assert sorted(body["models"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
async def test_every_model_generates_digits_on_black_or_pictures_on_white(client: httpx.AsyncClient, name: str) -> None:
    image = pixels(await client.post("/generate", params={"model": name, "n": 16, "seed": 1, "format": "png"}))
    if store.read_manifest(Settings().weights / name).dataset["name"] == "mnist":
        assert 15 < image.mean() < 60, "the mean of MNIST is 33"
        assert np.median(image) < 40
    else:
        assert 170 < image.mean() < 230, "the mean of emoji on white is 194"
        assert np.median(image) > 220


def origin() -> list[str]:
    """Vendor, family and model of the processor, and the versions of torch and zlib: others may give other bytes."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    found = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("vendor_id", "cpu family", "model")]
    return [
        *(match[1] if match else "" for match in found),
        torch.__version__.partition("+")[0],
        zlib.ZLIB_RUNTIME_VERSION,
    ]


def without_recipe(png: bytes) -> bytes:
    """A PNG without its recipe, which version 0.2.0 did not write."""
    at = png.index(b"iTXt") - 4
    return png[:at] + png[at + 12 + int.from_bytes(png[at : at + 4]) :]


@pytest.mark.parametrize("name", [path.stem for path in sorted(SEEDED.glob("*.png"))])
async def test_a_seed_gives_the_images_of_earlier_versions(client: httpx.AsyncClient, name: str) -> None:
    content, before = (await client.get(f"/generate?model={name}&seed=25&n=9")).content, SEEDED / f"{name}.png"
    if origin() == ORIGIN:
        assert without_recipe(content) == before.read_bytes()
    assert np.abs(picture(content).astype(int) - picture(before.read_bytes())).mean() < 0.5


@pytest.mark.parametrize("name", ENCODERS)
async def test_every_encoder_reconstructs_an_upload(client: httpx.AsyncClient, name: str) -> None:
    manifest = store.read_manifest(Settings().weights / name)
    source = "cgan" if manifest.dataset["name"] == "mnist" else name
    upload = (await client.post(f"/generate?model={source}&label=3&seed=5")).content
    assert picture(upload).shape[:2] == manifest.data_shape[1:]
    query = {"model": name, **({"label": 3} if FAMILIES[name].conditional else {})}
    files = {"image": ("three.png", upload, "image/png")}
    reconstruction = await client.post("/reconstruct", params=query, files=files)
    assert reconstruction.status_code == 200, reconstruction.text
    assert float(reconstruction.headers["x-error"]) < 0.03
    assert (await client.post("/encode", params=query, files=files)).status_code == 200


EDITORS = [name for name, family in FAMILIES.items() if family.noised is not Family.noised]


@pytest.mark.parametrize("name", EDITORS)
async def test_every_editor_completes_half_of_an_image_without_a_seam(client: httpx.AsyncClient, name: str) -> None:
    query = {"model": name, "label": 3, "n": 8, "format": "npz"}
    whole = arrays(await client.post("/generate", params={**query, "seed": 5}))["images"]
    height = whole.shape[1] // 2
    mask = np.zeros(whole.shape[1:3], np.uint8)
    mask[:height] = 255
    completed = await asyncio.gather(
        *(client.post("/inpaint", params={**query, "n": 1, "seed": i}, files=_files(image, mask))
          for i, image in enumerate(whole))
    )  # fmt: skip
    images = np.concatenate([arrays(response)["images"] for response in completed])
    assert np.array_equal(images[:, height:], whole[:, height:])
    assert np.abs(images[:, :height].astype(float) - whole[:, :height]).mean() > 3
    seams = [np.abs(x[:, height].astype(float) - x[:, height - 1]).mean() for x in (images, whole)]
    assert seams[0] < 1.35 * seams[1] + 2, "completing without fresh noise doubles it"


@pytest.mark.parametrize("name", EDITORS)
async def test_the_weaker_a_variation_the_nearer_it_is_to_its_image(client: httpx.AsyncClient, name: str) -> None:
    image = pixels(await client.post("/generate", params={"model": name, "label": 3, "seed": 5}))
    distances = []
    for strength in (0.1, 0.5, 0.9):
        query = {"model": name, "label": 3, "n": 4, "seed": 1, "strength": strength, "format": "npz"}
        varied = arrays(await client.post("/vary", params=query, files=_files(image)))["images"]
        distances.append(np.abs(varied.astype(float) - image).mean())
    assert distances[0] < 0.5 * distances[1] < 0.5 * distances[2]


def _files(image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, bytes]:
    """A form with PNGs."""
    return {"image": png(image)} if mask is None else {"image": png(image), "mask": png(mask)}
