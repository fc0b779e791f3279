"""The committed weights, through the service as `make serve` starts it."""

import io
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from models import families, store
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import pixels

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = store.list_weights(Settings().weights)
ENCODERS = [name for name in NAMES if families.get(store.read_manifest(Settings().weights / name).family).encodes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(device="cpu"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge", timeout=60) as made,
    ):
        yield made


async def test_all_of_them_are_ready(client: httpx.AsyncClient) -> None:
    body = (await client.get("/readyz")).json()
    assert body["status"] == "ready"
    assert sorted(body["models"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
async def test_each_draws_white_on_black(client: httpx.AsyncClient, name: str) -> None:
    image = pixels(await client.post("/generate", params={"model": name, "n": 16, "seed": 1, "format": "png"}))
    assert 15 < image.mean() < 60, "MNIST's own mean is 33"
    assert np.median(image) < 40


@pytest.mark.parametrize("name", ENCODERS)
async def test_each_encoder_gives_an_upload_back(client: httpx.AsyncClient, name: str) -> None:
    drawn = await client.post("/generate?model=cgan&digit=3&seed=5")
    with Image.open(io.BytesIO(drawn.content)) as image:
        assert image.size == (28, 28)
    files = {"image": ("three.png", drawn.content, "image/png")}
    digit = {"digit": 3} if families.get(store.read_manifest(Settings().weights / name).family).conditional else {}
    back = await client.post("/reconstruct", params={"model": name, **digit}, files=files)
    assert back.status_code == 200, back.text
    assert float(back.headers["x-error"]) < 0.03
    codes = await client.post("/encode", params={"model": name, **digit}, files=files)
    assert codes.status_code == 200
