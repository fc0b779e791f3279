"""/encode, /reconstruct and /decode: from images to latent codes and back."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from models import families
from tests.service.conftest import arrays, pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENCODERS = [name for name in families.names() if families.get(name).encodes]
OTHERS = [name for name in families.names() if name not in ENCODERS]
PICTURES = np.zeros((3, 28, 28), np.uint8)
PICTURES[:, 1:-1, 1:-1] = np.random.default_rng(0).random((3, 26, 26)) * 255  # a bright border would invert a picture


def png(image: np.ndarray) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    """A compressed npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """A form with these uploads."""
    return [("image", (f"{i}", content)) for i, content in enumerate(contents)]


@pytest.mark.parametrize("name", ENCODERS)
async def test_every_encoder_returns_a_code_per_image(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(f"/encode?model={name}", files=files(*map(png, PICTURES)))
    assert response.status_code == 200, response.text
    body = response.json()
    codes = np.array(body["codes"])
    assert codes.shape == (3, *body["shape"])
    assert np.isfinite(codes).all()
    assert len(np.unique(codes.reshape(3, -1), axis=0)) == 3
    assert body["digest"] == response.headers["x-model-digest"]


@pytest.mark.parametrize("name", ENCODERS)
async def test_every_encoder_returns_reconstructions_with_their_errors(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(f"/reconstruct?model={name}&format=npz", files=files(*map(png, PICTURES)))
    result = arrays(response)
    expected = np.square(result["images"] / 255 - PICTURES / 255).mean((1, 2))
    assert result["errors"] == pytest.approx(expected)
    listed = [float(error) for error in response.headers["x-error"].split(", ")]
    assert listed == pytest.approx(expected, abs=1e-6)


async def test_a_code_does_not_depend_on_the_other_images(client: httpx.AsyncClient) -> None:
    together = (await client.post("/encode?model=vae", files=files(*map(png, PICTURES)))).json()["codes"]
    alone = (await client.post("/encode?model=vae", files=files(png(PICTURES[1])))).json()["codes"]
    assert alone == together[1:2]


async def test_an_npz_upload_holds_many_images(client: httpx.AsyncClient) -> None:
    url = "/encode?model=pca&format=npz"
    separate = arrays(await client.post(url, files=files(*map(png, PICTURES))))["codes"]
    archived = arrays(await client.post(url, files=files(npz(images=PICTURES))))["codes"]
    assert np.array_equal(archived, separate)
    assert archived.dtype == np.float32


async def test_the_codes_of_a_conditional_encoder_depend_on_the_digit(client: httpx.AsyncClient) -> None:
    codes = [
        (await client.post(f"/encode?model=flow{digit}", files=files(png(PICTURES[0])))).json()["codes"]
        for digit in ("", "&digit=3", "&digit=4")
    ]
    assert codes[0] != codes[1] != codes[2]


async def test_reconstructions_come_in_the_formats_of_images(client: httpx.AsyncClient) -> None:
    url = "/reconstruct?model=pca"
    assert pixels(await client.post(url, files=files(png(PICTURES[0])))).shape == (28, 28)
    body = (await client.post(f"{url}&format=json", files=files(png(PICTURES[0])))).json()
    assert body["images"][0]["error"] >= 0


@pytest.mark.parametrize("name", OTHERS)
async def test_models_without_an_encoder_refuse_uploads(client: httpx.AsyncClient, name: str) -> None:
    for path in ("encode", "reconstruct"):
        response = await client.post(f"/{path}?model={name}", files=files(png(PICTURES[0])))
        assert f"{name} has no encoder" in problem(response, 422)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (npz(images=PICTURES.astype(np.float32)), "must be uint8"),
        (npz(images=PICTURES[0]), "must be uint8"),
        (npz(images=PICTURES[:0]), "must be uint8"),
        (npz(pictures=PICTURES), "npz with `images`"),
        (npz(images=np.array([{}], dtype=object)), "must be uint8"),
        (npz(images=PICTURES)[:200], "npz with `images`"),
        (b"PK\x03\x04", "npz with `images`"),
        (npz(images=np.zeros((6000, 28, 28), np.uint8)), "6000 pictures, but at most 64 more are allowed"),
        (npz(images=np.zeros((65, 28, 28), np.uint8)), "65 pictures, but at most 64 more are allowed"),
    ],
)
async def test_invalid_archives_are_refused(client: httpx.AsyncClient, content: bytes, detail: str) -> None:
    assert detail in problem(await client.post("/encode?model=vae", files=files(content)), 422)


async def test_a_request_without_uploads_or_with_too_many_is_refused(client: httpx.AsyncClient) -> None:
    assert "send at least one" in problem(await client.post("/encode?model=vae"), 422)
    assert "Too many files" in problem(await client.post("/encode?model=vae", files=files(*[b""] * 65)), 422)
    accept = {"Accept": "image/png"}
    problem(await client.post("/encode?model=vae", files=files(png(PICTURES[0])), headers=accept), 406)


@pytest.mark.parametrize("name", ENCODERS)
async def test_decoding_codes_gives_the_reconstruction(client: httpx.AsyncClient, name: str) -> None:
    upload = files(png(PICTURES[1]))
    codes = (await client.post(f"/encode?model={name}", files=upload)).json()["codes"]
    reconstructed = await client.post(f"/reconstruct?model={name}&format=npz", files=upload)
    decoded = await client.post("/decode", json={"model": name, "codes": codes, "format": "npz"})
    assert np.array_equal(arrays(decoded)["images"], arrays(reconstructed)["images"])
    assert list(np.shape(codes)[1:]) == (await client.get(f"/models/{name}")).json()["code_shape"]


@pytest.mark.parametrize(
    ("codes", "detail"),
    [
        ([], "at least 1"),
        ([[1.0, 2.0]], "of shape [16]"),
        ([[0.0] * 16, [0.0] * 15], "of shape [16]"),
        ([["a"] * 16], "of shape [16]"),
        ([[1e39] * 16], "finite"),
        (7, "list"),
        ([[0.0] * 16] * 65, "at most 64"),
    ],
)
async def test_invalid_codes_are_refused(client: httpx.AsyncClient, codes: object, detail: str) -> None:
    assert detail in problem(await client.post("/decode", json={"model": "vae", "codes": codes}), 422)


async def test_models_without_an_encoder_do_not_decode(client: httpx.AsyncClient) -> None:
    assert "no encoder" in problem(await client.post("/decode", json={"model": "gan", "codes": [[0.0] * 100]}), 422)
