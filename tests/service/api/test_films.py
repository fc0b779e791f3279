"""/models/NAME/film and film.webp: how a model's samples changed during training."""

import hashlib
import io
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from models import store
from models.film import Film
from service.app import create_app
from service.settings import Settings
from tests.conftest import manifest_of, small
from tests.service.conftest import asgi_client, problem


def film_of(grey: int, *, same_run: bool = True) -> Film:
    """Two frames of this grey, of two samples of 28x28 each."""
    image = io.BytesIO()
    Image.new("L", (56, 56), grey).save(image, "WEBP")
    frames = ({"updates": 0, "images": 0}, {"updates": 100, "images": 6400})
    return Film(image.getvalue(), 1, 56, 28, 2, 1, frames, same_run)


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """Weights `gan` with a film, and `pca` without."""
    for name in ("gan", "pca"):
        family = small(name).for_sampling()
        store.save(tmp_path / name, family, manifest_of(family), b"", film_of(50) if name == "gan" else None)
    return tmp_path


@pytest.fixture
async def client(filmed: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(weights=filmed, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield client


async def test_a_film_is_described_and_served(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    image = film_of(50).image
    assert models["pca"]["film"] is None
    assert models["gan"]["film"] == hashlib.sha256(image).hexdigest()
    assert (await client.get("/models/gan")).json()["film"] == models["gan"]["film"]
    response = await client.get("/models/gan/film")
    assert response.headers["cache-control"] == "no-cache"
    assert response.json() == {
        "weights": models["gan"]["digest"], "image": models["gan"]["film"], "same_run": True, "across": 1, "width": 56,
        "height": 28, "columns": 2, "rows": 1,
        "frames": [{"updates": 0, "images": 0}, {"updates": 100, "images": 6400}],
    }  # fmt: skip
    response = await client.get("/models/gan/film.webp")
    assert (response.content, response.headers["content-type"]) == (image, "image/webp")


async def test_an_image_with_its_digest_in_the_url_never_changes(client: httpx.AsyncClient) -> None:
    digest = (await client.get("/models/gan/film")).json()["image"]
    revalidated = await client.get("/models/gan/film.webp")
    kept = await client.get(f"/models/gan/film.webp?digest={digest}")
    assert "immutable" not in revalidated.headers["cache-control"]
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert kept.headers["etag"] == revalidated.headers["etag"] == f'"{digest}"'
    assert kept.content == revalidated.content
    unchanged = await client.get("/models/gan/film.webp", headers={"If-None-Match": kept.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    head = await client.head("/models/gan/film.webp")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", f'"{digest}"')
    other = await client.get(f"/models/gan/film.webp?digest={'0' * 64}")
    assert "has the digest" in problem(other, 404, "not-found")


async def test_weights_and_models_without_a_film_are_404(client: httpx.AsyncClient) -> None:
    for path in ("film", "film.webp"):
        assert problem(await client.get(f"/models/pca/{path}"), 404, "not-found") == "pca has no film"
        assert "available models: gan, pca" in problem(await client.get(f"/models/x/{path}"), 404, "unknown-model")


@pytest.mark.parametrize("file", ["film.json", "film.webp"])
async def test_a_damaged_film_does_not_harm_its_model(client: httpx.AsyncClient, filmed: Path, file: str) -> None:
    before = await client.get("/generate?model=gan&seed=1")
    (filmed / "gan" / file).write_bytes(b"damaged")
    assert "is damaged" in problem(await client.get("/models/gan/film"), 404, "not-found")
    assert "is damaged" in problem(await client.get("/models/gan/film.webp"), 404, "not-found")
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    assert models["gan"]["film"] is None
    after = await client.get("/generate?model=gan&seed=1")
    assert (after.content, after.headers["etag"]) == (before.content, before.headers["etag"])


async def test_a_new_film_is_served_at_once(client: httpx.AsyncClient, filmed: Path) -> None:
    old = (await client.get("/models/gan/film")).json()["image"]
    new = film_of(200, same_run=False)
    for name, content in new.files(store.read_manifest(filmed / "gan").digest).items():
        store.write_atomic(filmed / "gan" / name, content)
    described = (await client.get("/models/gan/film")).json()
    assert (described["image"], described["same_run"]) == (new.digest, False)
    assert (await client.get("/models/gan/film.webp")).content == new.image
    assert (await client.get(f"/models/gan/film.webp?digest={old}")).status_code == 404


async def test_the_film_of_other_weights_is_not_served(client: httpx.AsyncClient, filmed: Path) -> None:
    shutil.copy(filmed / "gan" / "film.json", filmed / "pca")
    shutil.copy(filmed / "gan" / "film.webp", filmed / "pca")
    assert "about other weights" in problem(await client.get("/models/pca/film"), 404, "not-found")
