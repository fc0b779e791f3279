"""/inpaint and /vary: uploads, masks, parameters, formats, streams and refusals."""

import asyncio
import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models import families
from models.base import Family
from service.engine.request import Ticket
from tests.service.conftest import arrays, picture, pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

EDITORS = [name for name in families.names() if families.get(name).noised is not Family.noised]
OTHERS = [name for name in families.names() if name not in EDITORS]
IMAGE = np.zeros((28, 28), np.uint8)
IMAGE[1:-1, 1:-1] = np.random.default_rng(0).random((26, 26)) * 255  # a bright border would invert it
MASK = np.zeros((28, 28), np.uint8)
MASK[:14] = 255
KNOWN = MASK == 0


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "PNG") if mode else Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def transparent(image: np.ndarray, mask: np.ndarray) -> bytes:
    """A PNG of `image` whose pixels are transparent where `mask` is 255."""
    return png(np.dstack((image, image, image, 255 - mask)))


def files(image: bytes | None = None, mask: bytes | None = None) -> dict[str, tuple[str, bytes]]:
    """A form with these uploads."""
    return {name: (name, data) for name, data in (("image", image), ("mask", mask)) if data is not None}


FILES = files(png(IMAGE), png(MASK))


@pytest.mark.parametrize("name", EDITORS)
async def test_a_completion_keeps_the_known_pixels(client: httpx.AsyncClient, name: str) -> None:
    query = {"model": name, "n": 5, "seed": 1, "steps": 3, "format": "npz"}
    response = await client.post("/inpaint", params=query, files=FILES)
    images = arrays(response)["images"]
    assert (images[:, KNOWN] == IMAGE[KNOWN]).all()
    assert len(np.unique(images[:, ~KNOWN], axis=0)) == 5
    assert response.headers["x-seed"] == "1"
    assert "content-location" not in response.headers, "a URL does not hold the image"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-model-digest"] == (await client.get(f"/models/{name}")).json()["digest"]


@pytest.mark.parametrize("path", ["inpaint", "vary"])
@pytest.mark.parametrize("name", EDITORS)
async def test_a_seed_gives_the_same_images_alone_in_parts_and_beside_other_requests(
    client: httpx.AsyncClient, name: str, path: str
) -> None:
    def post(**query: Any) -> Any:
        given = {"model": name, "seed": 7, "label": [3, 4], "steps": 4, "format": "npz", **query}
        return client.post(f"/{path}", params=given, files=FILES if path == "inpaint" else files(png(IMAGE)))

    whole = arrays(await post(n=4))
    others = [client.post("/generate", params={"model": name, "n": 5, "steps": 7}), post(seed=8, n=3, strength=0.4)]
    parts = await asyncio.gather(*(post(first=i) for i in range(4)), *others)
    assert np.array_equal(np.concatenate([arrays(part)["images"] for part in parts[:4]]), whole["images"])
    assert whole["labels"].tolist() == [3, 4, 3, 4]


@pytest.mark.parametrize("path", ["inpaint", "vary"])
async def test_without_a_seed_the_response_names_a_random_one(client: httpx.AsyncClient, path: str) -> None:
    url, uploads = f"/{path}?model=flow&steps=2", FILES if path == "inpaint" else files(png(IMAGE))
    first, second = [await client.post(url, files=uploads) for _ in range(2)]
    assert first.headers["x-seed"] != second.headers["x-seed"]
    again = await client.post(f"{url}&seed={first.headers['x-seed']}", files=uploads)
    assert again.content == first.content


async def test_without_a_label_there_is_none(client: httpx.AsyncClient) -> None:
    result = arrays(await client.post("/inpaint?model=flow&n=3&steps=2&format=npz", files=FILES))
    assert result["labels"].tolist() == [-1, -1, -1]
    url = "/inpaint?model=flow&seed=1&steps=3"
    unlabelled = pixels(await client.post(url, files=FILES))
    assert np.array_equal(pixels(await client.post(f"{url}&label=none&guidance=3", files=FILES)), unlabelled)
    labelled = pixels(await client.post(f"{url}&digit=4", files=FILES))
    assert not np.array_equal(labelled, unlabelled)
    assert not np.array_equal(pixels(await client.post(f"{url}&digit=4&guidance=5", files=FILES)), labelled)


async def test_uploads_may_be_base64_in_json(client: httpx.AsyncClient) -> None:
    image, mask = (base64.b64encode(png(array)).decode() for array in (IMAGE, MASK))
    body = {"model": "ddpm", "seed": 1, "steps": 3, "image": image, "mask": f"data:image/png;base64,{mask}"}
    expected = await client.post("/inpaint?model=ddpm&seed=1&steps=3", files=FILES)
    assert (await client.post("/inpaint", json=body)).content == content_of(expected)
    del body["mask"]
    varied = await client.post("/vary?model=ddpm&seed=1&steps=3", files=files(png(IMAGE)))
    assert (await client.post("/vary", json=body)).content == content_of(varied)
    body["image"] = "no base64!"
    assert "image: in JSON, send a file as a string in base64" in problem(await client.post("/vary", json=body), 422)
    body["image"] = [image, image]
    assert "at most 0 more are allowed" in problem(await client.post("/vary", json=body), 422)
    encoded = await client.post("/encode", json={"model": "vae", "image": [image, image]})
    assert len(encoded.json()["codes"]) == 2


def content_of(response: httpx.Response) -> bytes:
    """The body of a successful response."""
    assert response.status_code == 200, response.text
    return response.content


async def test_transparent_pixels_of_the_image_or_of_the_mask_are_completed(client: httpx.AsyncClient) -> None:
    url = "/inpaint?model=flow&seed=1&steps=3"
    expected = pixels(await client.post(url, files=FILES))
    assert np.array_equal(pixels(await client.post(url, files=files(transparent(IMAGE, MASK)))), expected)
    black = transparent(np.zeros_like(MASK), MASK)
    assert np.array_equal(pixels(await client.post(url, files=files(png(IMAGE), black))), expected)


async def test_a_mask_may_have_any_size(client: httpx.AsyncClient) -> None:
    url = "/inpaint?model=flow&seed=1&steps=3"
    expected = pixels(await client.post(url, files=FILES))
    for factor in (2, 5):
        large = np.kron(MASK, np.ones((factor, factor), np.uint8))
        assert np.array_equal(pixels(await client.post(url, files=files(png(IMAGE), png(large)))), expected)


async def test_dark_digits_on_light_paper_are_inverted_by_what_is_known(client: httpx.AsyncClient) -> None:
    url = "/inpaint?model=flow&seed=1&steps=3"
    expected = pixels(await client.post(url, files=FILES))
    paper = 255 - IMAGE
    paper[:14] = 0  # what is to be completed has no say
    assert np.array_equal(pixels(await client.post(url, files=files(png(paper), png(MASK)))), expected)
    inverted = f"{url}&polarity=dark-on-light"
    assert np.array_equal(pixels(await client.post(inverted, files=files(png(255 - IMAGE), png(MASK)))), expected)


async def test_strength_1_varies_nothing_of_the_image_and_less_keeps_some(client: httpx.AsyncClient) -> None:
    for name in EDITORS:
        query = {"model": name, "seed": 2, "label": 4, "steps": 3}
        generated = pixels(await client.get("/generate", params=query))
        for strength, equal in ((1, True), (0.5, False)):
            response = await client.post("/vary", params={**query, "strength": strength}, files=files(png(IMAGE)))
            assert np.array_equal(pixels(response), generated) == equal


async def test_edits_come_in_every_format(client: httpx.AsyncClient) -> None:
    url = "/inpaint?model=flow&seed=1&steps=2&n=2"
    expected = arrays(await client.post(f"{url}&format=npz", files=FILES))["images"]
    grid = pixels(await client.post(url, files=FILES))
    assert np.array_equal(grid, np.concatenate(list(expected), axis=1))
    assert np.array_equal(pixels(await client.post(f"{url}&format=webp", files=FILES))[..., 0], grid)
    body = (await client.post(f"{url}&format=json", files=FILES)).json()
    assert (body["model"], body["seed"]) == ("flow", 1)
    assert "url" not in body
    assert np.array_equal(picture(base64.b64decode(body["images"][1]["png"])), expected[1])
    archive = zipfile.ZipFile(io.BytesIO((await client.post(f"{url}&format=zip", files=FILES)).content))
    assert np.array_equal(picture(archive.read("00001.png")), expected[1])
    assert "image/tiff" not in (await client.post(url, files=FILES, headers={"Accept": "image/tiff, */*"})).headers


async def test_event_streams_show_a_completion_in_progress(client: httpx.AsyncClient) -> None:
    url = "/inpaint?model=ddpm&seed=1&steps=4&format=events&previews=true"
    text = content_of(await client.post(url, files=FILES)).decode()
    events = [part.split("\ndata: ") for part in text.removesuffix("\n\n").split("\n\n")]
    kinds = [kind.removeprefix("event: ") for kind, _ in events]
    assert kinds[0] == "start"
    assert kinds.count("preview") == 3
    assert kinds[-2:] == ["image", "end"]
    image = picture(base64.b64decode(json.loads(events[-2][1])["png"]))
    assert (image[KNOWN] == IMAGE[KNOWN]).all()


@pytest.mark.parametrize("name", EDITORS)
async def test_previews_can_show_what_the_model_predicts(client: httpx.AsyncClient, name: str) -> None:
    query = {"model": name, "seed": 1, "steps": 4, "n": 2, "label": 4, "format": "events", "previews": True}
    plain = content_of(await client.post("/generate", params=query)).decode()
    assert '"guess"' not in plain
    text = content_of(await client.post("/generate", params={**query, "guesses": True})).decode()
    assert [line for line in text.split("\n") if '"label"' in line] == [
        line for line in plain.split("\n") if '"label"' in line
    ], "the images stay the same"
    previews = [json.loads(part.split("\ndata: ")[1]) for part in text.split("\n\n") if "event: preview" in part]
    assert len(previews) == 6
    for preview in previews:
        state, guess = (picture(base64.b64decode(preview[key])).astype(float) for key in ("png", "guess"))
        assert state.shape == guess.shape == (28, 28)
        assert not np.array_equal(state, guess)
    inpainted = content_of(await client.post("/inpaint", params={**query, "guesses": True}, files=FILES)).decode()
    guesses = [json.loads(line)["guess"] for line in inpainted.replace("data: ", "").split("\n") if '"guess"' in line]
    assert all((picture(base64.b64decode(guess))[KNOWN] == IMAGE[KNOWN]).all() for guess in guesses)
    assert guesses
    assert "guesses: only with previews=true" in problem(await client.get(f"/generate?model={name}&guesses=1"), 422)
    events = "format=events&previews=1&guesses=1"
    assert "from models with `edits`" in problem(await client.get(f"/generate?model=gan&{events}"), 422)


@pytest.mark.parametrize(
    ("path", "query", "uploads", "detail"),
    [
        ("inpaint", "", {}, "image: send one image, and at most one `mask`"),
        ("inpaint", "", files(png(IMAGE)), "mask: send a picture whose white pixels are to be completed"),
        ("inpaint", "", files(png(IMAGE), png(np.zeros_like(MASK))), "nothing is to be completed; make a part"),
        ("inpaint", "", files(png(IMAGE), png(np.full_like(MASK, 255))), "all is to be completed; leave a part"),
        ("inpaint", "", files(transparent(IMAGE, MASK * 0)), "nothing is to be completed"),
        ("inpaint", "", files(png(IMAGE), b"mask"), "mask: the file is not a readable PNG"),
        ("inpaint", "", files(b"image", png(MASK)), "image: the file is not a readable PNG"),
        ("inpaint", "&sampler=ddim", FILES, "sampler: completing an image has a sampler of its own"),
        ("inpaint", "&strength=0", FILES, "strength: Input should be greater than 0"),
        ("inpaint", "&strength=1.5", FILES, "less than or equal to 1"),
        ("inpaint", "&strength=0.01&steps=20", FILES, "strength: at least 0.02 for 20 steps of ddpm"),
        ("inpaint", "&n=65", FILES, "n: at most 64"),
        ("inpaint", "&label=20", FILES, "has no class '20'"),
        ("inpaint", "&previews=true", FILES, "previews: only with format=events"),
        ("inpaint", "&frames=3", FILES, "unknown parameter"),
        ("vary", "", {}, "image: send an image"),
        ("vary", "", FILES, "mask: uploads must be form fields called `image`"),
        ("vary", "&steps=1001", files(png(IMAGE)), "steps: ddpm takes 1 to 1000"),
    ],
)
async def test_what_is_wrong_is_said(
    client: httpx.AsyncClient, path: str, query: str, uploads: dict[str, Any], detail: str
) -> None:
    assert detail in problem(await client.post(f"/{path}?model=ddpm{query}", files=uploads), 422)


@pytest.mark.parametrize("name", OTHERS)
async def test_other_models_refuse_and_name_those_that_edit(client: httpx.AsyncClient, name: str) -> None:
    for path, uploads in (("inpaint", FILES), ("vary", files(png(IMAGE)))):
        detail = problem(await client.post(f"/{path}?model={name}", files=uploads), 422)
        assert detail == f"model: {name} does not edit images; these do: {', '.join(EDITORS)}"
    assert not (await client.get(f"/models/{name}")).json()["edits"]


async def test_models_say_that_they_edit(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()["models"]
    assert [model["name"] for model in models if model["edits"]] == EDITORS


async def test_a_timeout_and_a_cancelled_request_end_a_completion(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = app.state.service.engine
    problem(await client.post("/inpaint?model=ddpm&steps=900&n=64&timeout=0.05", files=FILES), 504, "too-late")
    cancelled: list[Ticket] = []
    monkeypatch.setattr(
        engine, "cancel", lambda ticket, cancel=engine.cancel: (cancelled.append(ticket), cancel(ticket))
    )
    task = asyncio.create_task(client.post("/inpaint?model=ddpm&steps=900&n=8", files=FILES))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not (cancelled and cancelled[0].outcome):
        await asyncio.sleep(0.01)
    assert cancelled[0].outcome == "cancelled"
    assert engine.outstanding == 0


async def test_uploads_count_towards_the_limits_of_pixels(client: httpx.AsyncClient, app: FastAPI) -> None:
    limit = app.state.service.settings.max_pixels
    side = int(limit**0.5) + 1
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    large = files(png(IMAGE), buffer.getvalue())
    assert "pixels" in problem(await client.post("/inpaint?model=flow", files=large), 422)


async def test_the_openapi_document_says_what_is_uploaded(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, names in (("/inpaint", {"image", "mask"}), ("/vary", {"image"})):
        content = paths[path]["post"]["requestBody"]["content"]
        assert content["multipart/form-data"]["schema"]["properties"].keys() == names
        assert names < content["application/json"]["schema"]["properties"].keys()
        assert "strength" in [parameter["name"] for parameter in paths[path]["post"]["parameters"]]


async def test_pictures_in_colour_are_completed_in_their_shape(named_weights: Path) -> None:
    from service.app import create_app
    from service.settings import Settings
    from tests.service.conftest import asgi_client

    app = create_app(Settings(weights=named_weights, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        assert "does not edit" in problem(await client.post("/vary?model=pictures", files=files(png(IMAGE))), 422)
        result = arrays(await client.post("/inpaint?model=kinds&steps=2&format=npz&n=2", files=FILES))
        assert result["images"].shape == (2, 8, 8)
        assert result["labels"].tolist() == [-1, -1], "`none` is the name of a class of this model"
