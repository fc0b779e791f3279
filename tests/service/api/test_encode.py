"""/encode and /reconstruct: images in, codes or images out."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from models import families
from tests.service.conftest import pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENCODERS = [name for name in families.names() if families.get(name).encodes]
OTHERS = [name for name in families.names() if name not in ENCODERS]
PICTURES = (np.random.default_rng(0).random((3, 28, 28)) * 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{i}", content)) for i, content in enumerate(contents)]


@pytest.mark.parametrize("name", ENCODERS)
async def test_every_encoder_gives_a_code_for_each_image(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(f"/encode?model={name}", files=files(*map(png, PICTURES)))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    codes = np.array(body["codes"])
    assert codes.shape == (3, *body["shape"])
    assert np.isfinite(codes).all()
    assert len(np.unique(codes.reshape(3, -1), axis=0)) == 3
    assert body["digest"] == answer.headers["x-model-digest"]


@pytest.mark.parametrize("name", ENCODERS)
async def test_every_encoder_gives_images_back_with_their_errors(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(f"/reconstruct?model={name}&format=npz", files=files(*map(png, PICTURES)))
    assert answer.status_code == 200, answer.text
    arrays = np.load(io.BytesIO(answer.content))
    expected = np.square(arrays["images"] / 255 - PICTURES / 255).mean((1, 2))
    assert arrays["errors"] == pytest.approx(expected)
    assert [float(error) for error in answer.headers["x-error"].split(", ")] == pytest.approx(expected, abs=1e-6)


async def test_a_code_is_the_same_alone_and_in_company(client: httpx.AsyncClient) -> None:
    together = (await client.post("/encode?model=vae", files=files(*map(png, PICTURES)))).json()["codes"]
    alone = (await client.post("/encode?model=vae", files=files(png(PICTURES[1])))).json()["codes"]
    assert alone == together[1:2]


async def test_an_archive_holds_many_images(client: httpx.AsyncClient) -> None:
    one_by_one = await client.post("/encode?model=pca&format=npz", files=files(*map(png, PICTURES)))
    archived = await client.post("/encode?model=pca&format=npz", files=files(npz(images=PICTURES)))
    codes = np.load(io.BytesIO(archived.content))["codes"]
    assert np.array_equal(codes, np.load(io.BytesIO(one_by_one.content))["codes"])
    assert codes.dtype == np.float32


async def test_a_code_depends_on_the_digit_where_the_model_wants_to_know(client: httpx.AsyncClient) -> None:
    codes = [
        (await client.post(f"/encode?model=flow{digit}", files=files(png(PICTURES[0])))).json()["codes"]
        for digit in ("", "&digit=3", "&digit=4")
    ]
    assert codes[0] != codes[1] != codes[2]


async def test_reconstructions_come_in_every_format_of_images(client: httpx.AsyncClient) -> None:
    url = "/reconstruct?model=pca"
    assert pixels(await client.post(url, files=files(png(PICTURES[0])))).shape == (28, 28)
    body = (await client.post(f"{url}&format=json", files=files(png(PICTURES[0])))).json()
    assert body["images"][0]["error"] >= 0


@pytest.mark.parametrize("name", OTHERS)
async def test_a_model_without_an_encoder_says_so(client: httpx.AsyncClient, name: str) -> None:
    for path in ("encode", "reconstruct"):
        answer = await client.post(f"/{path}?model={name}", files=files(png(PICTURES[0])))
        assert f"{name} has no encoder" in problem(answer, 422)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (npz(images=PICTURES.astype(np.float32)), "must be uint8"),
        (npz(images=PICTURES[0]), "must be uint8"),
        (npz(images=PICTURES[:0]), "must be uint8"),
        (npz(pictures=PICTURES), "npz with `images`"),
        (npz(images=np.array([{}], dtype=object)), "must be uint8"),
        (npz(images=PICTURES)[:200], "npz with `images`"),
        (b"PK\x03\x04", "npz with `images`"),
        (npz(images=np.zeros((6000, 28, 28), np.uint8)), "6000 pictures where 64 more may come"),
        (npz(images=np.zeros((65, 28, 28), np.uint8)), "65 pictures where 64 more may come"),
    ],
)
async def test_archives_that_will_not_do(client: httpx.AsyncClient, content: bytes, complaint: str) -> None:
    assert complaint in problem(await client.post("/encode?model=vae", files=files(content)), 422)


async def test_nothing_to_encode_is_said(client: httpx.AsyncClient) -> None:
    assert "send at least one" in problem(await client.post("/encode?model=vae"), 422)
    answer = await client.post("/encode?model=vae", files=files(*[b""] * 65))
    assert "Too many files" in problem(answer, 422)
    answer = await client.post("/encode?model=vae", files=files(png(PICTURES[0])), headers={"Accept": "image/png"})
    problem(answer, 406)


@pytest.mark.parametrize("name", ENCODERS)
async def test_codes_decode_to_what_reconstruction_gives(client: httpx.AsyncClient, name: str) -> None:
    sent = files(png(PICTURES[1]))
    codes = (await client.post(f"/encode?model={name}", files=sent)).json()["codes"]
    back = await client.post(f"/reconstruct?model={name}&format=npz", files=sent)
    decoded = await client.post("/decode", json={"model": name, "codes": codes, "format": "npz"})
    assert decoded.status_code == 200, decoded.text
    assert np.array_equal(np.load(io.BytesIO(decoded.content))["images"], np.load(io.BytesIO(back.content))["images"])
    described = (await client.get(f"/models/{name}")).json()
    assert list(np.shape(codes)[1:]) == described["code_shape"]


@pytest.mark.parametrize(
    ("codes", "complaint"),
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
async def test_codes_that_will_not_do(client: httpx.AsyncClient, codes: object, complaint: str) -> None:
    assert complaint in problem(await client.post("/decode", json={"model": "vae", "codes": codes}), 422)


async def test_a_model_without_an_encoder_decodes_nothing(client: httpx.AsyncClient) -> None:
    assert "no encoder" in problem(await client.post("/decode", json={"model": "gan", "codes": [[0.0] * 100]}), 422)
