"""The recipe in PNGs: what it says, that it draws the image again, and that it changes no pixel."""

import base64
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from drawbridge import read_recipe
from drawbridge.recipe import NoRecipe
from service.app import create_app
from service.codecs.png import png
from service.settings import Settings
from tests.service.conftest import arrays, asgi_client, pixels

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """A function that reads the recipe of a PNG."""

    def read_content(content: bytes) -> dict[str, Any]:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        return read_recipe(path)

    return read_content


async def test_a_png_holds_the_request_that_draws_it_again(client: httpx.AsyncClient, read: Any) -> None:
    query = {"model": "ddpm", "label": [3, 4], "n": 3, "seed": 9, "first": 2, "steps": 2, "guidance": 2.0}
    response = await client.post("/generate", params=query)
    recipe = read(response.content)
    digest = response.headers["x-model-digest"]
    assert recipe == {
        "model": f"ddpm@{digest[:12]}", "digest": digest, "seed": 9, "first": 2, "n": 3, "label": ["3", "4"],
        "steps": 2, "sampler": "dpm++2m", "guidance": 2.0,
    }  # fmt: skip
    del recipe["digest"]
    assert (await client.post("/generate", json=recipe)).content == response.content
    assert (await client.get(response.headers["content-location"])).content == response.content


@pytest.mark.parametrize(("model", "label"), [("flow", {"label": ["none"]}), ("flow", {}), ("gan", {}), ("vae", {})])
async def test_every_image_of_a_container_holds_its_own_recipe(
    client: httpx.AsyncClient, read: Any, model: str, label: dict[str, Any]
) -> None:
    query = {"model": model, "n": 3, "seed": 9, **label}
    whole = arrays(await client.post("/generate", params={**query, "format": "npz"}))
    body = (await client.post("/generate", params={**query, "format": "json"})).json()
    files = [base64.b64decode(item["png"]) for item in body["images"]]
    archive = zipfile.ZipFile(io.BytesIO((await client.post("/generate", params={**query, "format": "zip"})).content))
    assert [archive.read(name) for name in sorted(archive.namelist(), key=lambda name: name[-9:])] == files
    events = (await client.post("/generate", params={**query, "format": "events"})).text
    assert all(base64.b64encode(file).decode() in events for file in files)
    for i, file in enumerate(files):
        recipe = read(file)
        assert (recipe["seed"], recipe["first"], recipe["n"]) == (9, i, 1)
        classes = {"label": ["none" if whole["labels"][i] < 0 else str(whole["labels"][i])]}
        assert {"label": recipe.get("label")} == (classes if model == "flow" else {"label": None})
        del recipe["digest"]
        again = await client.post("/generate", json=recipe)
        assert again.content == file
        assert np.array_equal(pixels(again), whole["images"][i])


async def test_labels_are_in_utf_8(named_weights: Path, read: Any) -> None:
    app = create_app(Settings(weights=named_weights, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        content = (await client.post("/generate", params={"model": "pictures", "label": "çay", "seed": 1})).content
    assert read(content)["label"] == ["çay"]
    assert "çay".encode() in content


async def test_images_of_uploads_have_no_recipe(client: httpx.AsyncClient, read: Any) -> None:
    image = png(np.eye(28, dtype=np.uint8) * 200)
    for path in ("vary?model=flow&steps=2", "reconstruct?model=pca"):
        response = await client.post(f"/{path}", files={"image": image})
        assert pixels(response).shape == (28, 28)
        with pytest.raises(NoRecipe, match="has no recipe; PNGs of /generate have one"):
            read(response.content)


async def test_the_recipe_is_a_valid_chunk_and_changes_no_pixel(read: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    recipe = {"model": "a", "digest": "b"}
    plain, content = png(image), png(image, json.dumps(recipe).encode())
    at = content.index(b"iTXt")
    length = int.from_bytes(content[at - 4 : at])
    assert zlib.crc32(content[at : at + 4 + length]) == int.from_bytes(content[at + 4 + length :][:4])
    assert content[: at - 4] + content[at + length + 8 :] == plain
    picture = Image.open(io.BytesIO(content))
    assert np.array_equal(np.asarray(picture), image)
    assert isinstance(picture, Image.Image)
    assert json.loads(picture.info["drawbridge"]) == recipe == read(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "is not a PNG; only PNGs hold a recipe"),
        (png(np.zeros((8, 8), np.uint8)), "has no recipe"),
        (png(np.zeros((8, 8), np.uint8))[:20], "has no recipe"),
        (png(np.zeros((8, 8), np.uint8), b"{"), "the recipe is damaged"),
        (png(np.zeros((8, 8), np.uint8), b"[]"), "the recipe is damaged"),
        (png(np.zeros((8, 8), np.uint8), b'{"model": 3, "digest": ""}'), "the recipe is damaged"),
        (png(np.zeros((8, 8), np.uint8), b"[" * 100_000), "the recipe is damaged"),
    ],
)
async def test_other_files_have_no_recipe(content: bytes, message: str, read: Any) -> None:
    with pytest.raises(NoRecipe, match=message):
        read(content)
