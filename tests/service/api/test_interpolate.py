"""/interpolate: from one image to another."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from models import families
from tests.service.conftest import pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


def png(grey: int) -> bytes:
    """A 28x28 picture."""
    image = np.zeros((28, 28), np.uint8)
    image[8:20, 12:16] = grey
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


async def frames(client: httpx.AsyncClient, query: str, **more) -> np.ndarray:
    answer = await client.post(f"/interpolate?{query}&format=npz", **more)
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))["images"]


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("name", families.names())
async def test_from_one_seed_to_another(client: httpx.AsyncClient, name: str, path: str) -> None:
    # Fresh noise is the start's, so the way arrives where the other seed does only by a sampler that adds none.
    sampler = "&sampler=ddim&steps=3" if name == "ddpm" else ""
    digit = "&digit=4" if families.get(name).conditional else ""
    way = await frames(client, f"model={name}&seed=1&seed=2&frames=5&path={path}{sampler}{digit}")
    ends = [
        np.load(io.BytesIO((await client.post(f"/generate?model={name}&seed={s}&format=npz{sampler}{digit}")).content))[
            "images"
        ][0]
        for s in (1, 2)
    ]
    assert way.shape == (5, 28, 28)
    assert np.array_equal(way[0], ends[0])
    assert np.array_equal(way[-1], ends[1])


@pytest.mark.parametrize("name", [name for name in families.names() if families.get(name).conditional])
async def test_from_one_digit_to_another_at_one_seed(client: httpx.AsyncClient, name: str) -> None:
    way = await frames(client, f"model={name}&seed=3&digit=1&digit=8&frames=3")
    for i, digit in ((0, 1), (2, 8)):
        answer = await client.post(f"/generate?model={name}&seed=3&digit={digit}")
        assert np.array_equal(way[i], pixels(answer))
    assert not np.array_equal(way[0], way[2])


@pytest.mark.parametrize("name", [name for name in families.names() if families.get(name).encodes])
async def test_from_one_uploaded_image_to_another(client: httpx.AsyncClient, name: str) -> None:
    files = [("image", ("a.png", png(255), "image/png")), ("image", ("b.png", png(90), "image/png"))]
    way = await frames(client, f"model={name}&frames=4", files=files)
    back = await frames(client, f"model={name}&frames=4", files=files[::-1])
    assert way.shape == (4, 28, 28)
    assert np.array_equal(way[0], back[-1])
    assert np.array_equal(way[-1], back[0])


async def test_the_formats_of_a_way(client: httpx.AsyncClient) -> None:
    url = "/interpolate?model=vae&seed=1&seed=2&frames=6"
    assert pixels(await client.post(url)).shape == (28, 6 * 28)
    for kind in ("gif", "webp"):
        answer = await client.post(f"{url}&format={kind}")
        assert answer.headers["content-type"] == f"image/{kind}"
        with Image.open(io.BytesIO(answer.content)) as image:
            # Untrained frames may be equal, and GIF leaves those out.
            assert 1 <= image.n_frames <= 10
            assert image.info["loop"] == 0


async def test_a_way_can_be_drawn_again_from_its_location(client: httpx.AsyncClient) -> None:
    answer = await client.post("/interpolate?model=cgan&digit=1&digit=2")
    again = await client.get(answer.headers["content-location"])
    assert again.content == answer.content
    assert "immutable" in again.headers["cache-control"]


async def test_a_way_between_uploads_has_no_location(client: httpx.AsyncClient) -> None:
    files = [("image", ("a.png", png(255))), ("image", ("b.png", png(90)))]
    answer = await client.post("/interpolate?model=vae", files=files)
    assert answer.status_code == 200
    assert "content-location" not in answer.headers


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("model=vae", "give two ends"),
        ("model=vae&seed=1", "give two ends"),
        ("model=vae&seed=1&seed=2&seed=3", "seed"),
        ("model=vae&digit=1&digit=2", "cannot be told which digit"),
        ("model=vae&seed=1&seed=2&frames=1", "frames"),
        ("model=vae&seed=1&seed=2&frames=257", "frames"),
        ("model=vae&seed=1&seed=2&path=scenic", "path"),
    ],
)
async def test_ends_that_are_none(client: httpx.AsyncClient, query: str, complaint: str) -> None:
    assert complaint in problem(await client.post(f"/interpolate?{query}"), 422)


async def test_an_upload_under_another_name_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/interpolate?model=vae", files=[("picture", ("a.png", png(255)))])
    assert "called `image`" in problem(answer, 422)


@pytest.mark.parametrize(
    ("query", "pictures", "complaint"),
    [
        ("model=vae", [png(255)], "send two"),
        ("model=pca", [png(255)], "send two"),
        ("model=vae&seed=1&seed=2", [png(255)] * 2, "not two seeds"),
        ("model=gan", [png(255)] * 2, "has no encoder"),
        ("model=vae", [png(255), b"no picture"], "does not read as PNG, JPEG or npz"),
        ("model=vae", [png(255)] * 3, "Too many files"),
    ],
)
async def test_uploads_that_are_no_ends(
    client: httpx.AsyncClient, query: str, pictures: list[bytes], complaint: str
) -> None:
    files = [("image", (f"{i}.png", content)) for i, content in enumerate(pictures)]
    assert complaint in problem(await client.post(f"/interpolate?{query}", files=files), 422)


async def test_frames_between_two_digits_are_labelled_at_the_ends_alone(client: httpx.AsyncClient) -> None:
    answer = await client.post("/interpolate?model=cgan&seed=3&digit=1&digit=8&frames=4&format=npz")
    assert np.load(io.BytesIO(answer.content))["labels"].tolist() == [1, -1, -1, 8]
    answer = await client.post("/interpolate?model=cgan&seed=3&seed=4&digit=8&frames=3&format=npz")
    assert np.load(io.BytesIO(answer.content))["labels"].tolist() == [8, 8, 8]


@pytest.mark.parametrize("name", ["vae", "ddpm"])
async def test_the_ends_of_a_way_between_uploads_are_their_reconstructions(
    client: httpx.AsyncClient, name: str
) -> None:
    files = [("image", ("a.png", png(255))), ("image", ("b.png", png(90)))]
    way = await frames(client, f"model={name}&frames=3", files=files)
    answer = await client.post(f"/reconstruct?model={name}&format=npz", files=files)
    back = np.load(io.BytesIO(answer.content))["images"]
    assert np.array_equal(way[[0, -1]], back)
