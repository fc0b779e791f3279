"""/interpolate: frames between two seeds, digits or uploads."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models import families
from tests.service.conftest import arrays, pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONDITIONAL = [name for name in families.names() if families.get(name).conditional]
ENCODERS = [name for name in families.names() if families.get(name).encodes]


def png(grey: int) -> bytes:
    """A 28x28 picture of a bar."""
    image = np.zeros((28, 28), np.uint8)
    image[8:20, 12:16] = grey
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def uploads(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """A form with these uploads."""
    return [("image", (f"{i}.png", content)) for i, content in enumerate(contents)]


async def frames(client: httpx.AsyncClient, query: str, **body: Any) -> np.ndarray:
    """The frames of an interpolation."""
    return arrays(await client.post(f"/interpolate?{query}&format=npz", **body))["images"]


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("name", families.names())
async def test_frames_between_two_seeds_start_and_end_with_their_images(
    client: httpx.AsyncClient, name: str, path: str
) -> None:
    # A sampler that adds noise uses the first seed's noise for all frames; DDIM adds none.
    options = "&sampler=ddim&steps=3" if name == "ddpm" else ""
    options += "&digit=4" if families.get(name).conditional else ""
    result = await frames(client, f"model={name}&seed=1&seed=2&frames=5&path={path}{options}")
    ends = [await client.post(f"/generate?model={name}&seed={seed}&format=npz{options}") for seed in (1, 2)]
    assert result.shape == (5, 28, 28)
    assert np.array_equal(result[[0, -1]], np.concatenate([arrays(end)["images"] for end in ends]))


@pytest.mark.parametrize("name", CONDITIONAL)
async def test_frames_between_two_digits_at_one_seed(client: httpx.AsyncClient, name: str) -> None:
    result = await frames(client, f"model={name}&seed=3&digit=1&digit=8&frames=3")
    for i, digit in ((0, 1), (2, 8)):
        assert np.array_equal(result[i], pixels(await client.post(f"/generate?model={name}&seed=3&digit={digit}")))
    assert not np.array_equal(result[0], result[2])


@pytest.mark.parametrize("name", ENCODERS)
async def test_frames_between_two_uploads_can_be_reversed(client: httpx.AsyncClient, name: str) -> None:
    query, first, last = f"model={name}&frames=4", png(255), png(90)
    forward = await frames(client, query, files=uploads(first, last))
    backward = await frames(client, query, files=uploads(last, first))
    assert forward.shape == (4, 28, 28)
    assert np.array_equal(forward[[0, -1]], backward[[-1, 0]])


@pytest.mark.parametrize("name", ["vae", "ddpm"])
async def test_frames_between_two_uploads_start_and_end_with_their_reconstructions(
    client: httpx.AsyncClient, name: str
) -> None:
    files = uploads(png(255), png(90))
    result = await frames(client, f"model={name}&frames=3", files=files)
    reconstructions = arrays(await client.post(f"/reconstruct?model={name}&format=npz", files=files))["images"]
    assert np.array_equal(result[[0, -1]], reconstructions)


async def test_an_interpolation_can_be_a_strip_or_an_animation(client: httpx.AsyncClient) -> None:
    url = "/interpolate?model=vae&seed=1&seed=2&frames=6"
    assert pixels(await client.post(url)).shape == (28, 6 * 28)
    for format_ in ("gif", "webp"):
        response = await client.post(f"{url}&format={format_}")
        assert response.headers["content-type"] == f"image/{format_}"
        with Image.open(io.BytesIO(response.content)) as image:
            # Frames of untrained models may be equal, and GIF drops repeated frames.
            assert 1 <= image.n_frames <= 10
            assert image.info["loop"] == 0


async def test_a_request_without_a_model_uses_the_default_model(client: httpx.AsyncClient) -> None:
    for query, model in (("seed=1&seed=2", "dcgan"), ("seed=1&digit=2&digit=3", "cgan")):
        response = await client.get(f"/interpolate?{query}")
        assert httpx.URL(response.headers["content-location"]).params["model"].startswith(f"{model}@")
        assert response.headers["cache-control"] == "no-store"
    refused = await client.post("/interpolate", files=uploads(b""))
    assert problem(refused, 422).startswith("model: name a model that `encodes` uploads")


async def test_the_content_location_reproduces_an_interpolation(client: httpx.AsyncClient) -> None:
    response = await client.post("/interpolate?model=cgan&digit=1&digit=2")
    reproduced = await client.get(response.headers["content-location"])
    assert reproduced.content == response.content
    assert "immutable" in reproduced.headers["cache-control"]


async def test_an_interpolation_between_uploads_has_no_content_location(client: httpx.AsyncClient) -> None:
    response = await client.post("/interpolate?model=vae", files=uploads(png(255), png(90)))
    assert response.status_code == 200
    assert "content-location" not in response.headers


async def test_frames_between_two_digits_have_labels_at_the_ends_only(client: httpx.AsyncClient) -> None:
    query = "/interpolate?model=cgan&seed=3&format=npz"
    digits = arrays(await client.post(f"{query}&digit=1&digit=8&frames=4"))
    assert digits["labels"].tolist() == [1, -1, -1, 8]
    seeds = arrays(await client.post(f"{query}&seed=4&digit=8&frames=3"))
    assert seeds["labels"].tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("model=vae", "give two ends"),
        ("model=vae&seed=1", "give two ends"),
        ("model=vae&seed=1&seed=2&seed=3", "seed: "),
        ("model=vae&digit=1&digit=2", "digit: vae is not conditional"),
        ("model=vae&seed=1&seed=2&frames=1", "frames: "),
        ("model=vae&seed=1&seed=2&frames=257", "frames: "),
        ("model=vae&seed=1&seed=2&path=scenic", "path: "),
    ],
)
async def test_invalid_ends_are_refused(client: httpx.AsyncClient, query: str, detail: str) -> None:
    assert problem(await client.post(f"/interpolate?{query}"), 422).startswith(detail)


async def test_an_upload_with_another_field_name_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/interpolate?model=vae", files=[("picture", ("a.png", png(255)))])
    assert "called `image`" in problem(response, 422)


@pytest.mark.parametrize(
    ("query", "pictures", "detail"),
    [
        ("model=vae", [png(255)], "send two images"),
        ("model=pca", [png(255)], "send two images"),
        ("model=vae&seed=1&seed=2", [png(255)] * 2, "at most one seed"),
        ("model=gan", [png(255)] * 2, "gan has no encoder"),
        ("model=vae", [png(255), b"no picture"], "not a readable PNG, JPEG, WebP, GIF, BMP, TIFF or npz"),
        ("model=vae", [png(255)] * 3, "Too many files"),
    ],
)
async def test_invalid_uploads_are_refused(
    client: httpx.AsyncClient, query: str, pictures: list[bytes], detail: str
) -> None:
    assert detail in problem(await client.post(f"/interpolate?{query}", files=uploads(*pictures)), 422)
