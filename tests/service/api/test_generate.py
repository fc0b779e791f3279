"""/generate: what comes back, how to get it again, in every format."""

import asyncio
import base64
import gc
import io
import json
import zipfile

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models import families
from service.engine.request import Ticket
from tests.service.conftest import pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("name", families.names())
async def test_every_family_draws_a_digit_sized_png(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/generate", params={"model": name})
    assert answer.headers["content-type"] == "image/png"
    assert pixels(answer).shape == (28, 28)
    assert pixels(answer).dtype == np.uint8


async def test_an_answer_says_how_to_draw_it_again(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate", params={"model": "ddpm", "digit": [3, 4], "n": 3, "steps": 2})
    location = httpx.URL(answer.headers["content-location"])
    assert location.params["seed"] == answer.headers["x-seed"]
    assert location.params.get_list("digit") == ["3", "4"]
    assert (location.params["sampler"], location.params["guidance"]) == ("dpm++2m", "1.6")
    again = await client.get(str(location))
    assert again.content == answer.content
    assert again.headers["x-model-digest"] == answer.headers["x-model-digest"]


@pytest.mark.parametrize(("digit", "model"), [([], "dcgan"), ([7], "cgan")])
async def test_a_request_that_names_no_model_gets_the_default_one(
    client: httpx.AsyncClient, digit: list[int], model: str
) -> None:
    answer = await client.get("/generate", params={"digit": digit, "seed": 3})
    assert httpx.URL(answer.headers["content-location"]).params["model"].startswith(f"{model}@")
    assert answer.headers["cache-control"] == "no-store", "another default would be another draw"
    assert answer.content == (await client.get(answer.headers["content-location"])).content


async def test_a_way_that_names_no_model_is_of_the_default_one(client: httpx.AsyncClient) -> None:
    for query, model in (("seed=1&seed=2", "dcgan"), ("seed=1&digit=2&digit=3", "cgan")):
        answer = await client.get(f"/interpolate?{query}")
        assert httpx.URL(answer.headers["content-location"]).params["model"].startswith(f"{model}@")
        assert answer.headers["cache-control"] == "no-store"
    files = {"image": ("a.png", b"", "image/png")}
    assert "name one that `encodes`" in problem(await client.post("/interpolate", files=files), 422)


async def test_without_a_seed_every_draw_is_another(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/generate", params={"model": "gan"}) for _ in range(3)]
    assert len({answer.headers["x-seed"] for answer in answers}) == 3
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}


@pytest.mark.parametrize("name", families.names())
async def test_four_at_once_are_four_calls_for_one_each(client: httpx.AsyncClient, name: str) -> None:
    common = {"model": name, "seed": 5, "format": "npz"}
    together = await client.post("/generate", params={**common, "n": 4})
    apart = [await client.post("/generate", params={**common, "first": i}) for i in range(4)]
    whole = np.load(io.BytesIO(together.content))["images"]
    assert np.array_equal(whole, np.concatenate([np.load(io.BytesIO(one.content))["images"] for one in apart]))


async def test_digits_take_turns(client: httpx.AsyncClient) -> None:
    query = {"model": "cgan", "digit": [7, 1], "n": 5, "seed": 0, "format": "npz"}
    arrays = np.load(io.BytesIO((await client.post("/generate", params=query)).content))
    assert arrays["labels"].tolist() == [7, 1, 7, 1, 7]
    assert arrays["labels"].dtype == np.int64
    assert arrays["images"].shape == (5, 28, 28)


async def test_digits_take_turns_by_the_image_s_own_index(client: httpx.AsyncClient) -> None:
    query = {"model": "cgan", "digit": [7, 1, 3], "seed": 0, "format": "npz"}
    whole = np.load(io.BytesIO((await client.post("/generate", params={**query, "n": 5})).content))
    rest = np.load(io.BytesIO((await client.post("/generate", params={**query, "n": 3, "first": 2})).content))
    assert rest["labels"].tolist() == whole["labels"][2:].tolist() == [3, 7, 1]
    assert np.array_equal(rest["images"], whole["images"][2:])


async def test_a_model_that_knows_no_digits_labels_its_images_so(client: httpx.AsyncClient) -> None:
    arrays = np.load(io.BytesIO((await client.post("/generate?model=gan&n=2&format=npz")).content))
    assert arrays["labels"].tolist() == [-1, -1]


async def test_a_query_and_a_json_body_ask_for_the_same(client: httpx.AsyncClient) -> None:
    asked = {"model": "cgan", "digit": [2, 3], "n": 2, "seed": 9}
    by_query = await client.post("/generate", params=asked)
    assert (await client.post("/generate", json=asked)).content == by_query.content
    assert (await client.post("/generate?model=cgan", json={**asked, "model": None} | {"n": 2})).status_code == 422
    split = await client.post("/generate?model=cgan&n=2", json={"digit": [2, 3], "seed": 9})
    assert split.content == by_query.content


async def test_several_images_are_a_grid_row_by_row(client: httpx.AsyncClient) -> None:
    query = {"model": "gan", "seed": 1, "n": 5}
    sheet = pixels(await client.post("/generate", params=query))
    assert sheet.shape == (2 * 28, 3 * 28)
    images = np.load(io.BytesIO((await client.post("/generate", params={**query, "format": "npz"})).content))["images"]
    assert np.array_equal(sheet[28:, 28:56], images[4])
    assert not sheet[28:, 56:].any()


async def test_every_format_holds_the_same_images(client: httpx.AsyncClient) -> None:
    async def answer(kind: str) -> httpx.Response:
        found = await client.post("/generate", params={"model": "cgan", "seed": 4, "n": 2, "digit": 6, "format": kind})
        assert found.status_code == 200
        return found

    images = np.load(io.BytesIO((await answer("npz")).content))["images"]
    row = np.concatenate(list(images), axis=1)
    assert np.array_equal(pixels(await answer("png")), row)
    webp = pixels(await answer("webp"))
    assert np.array_equal(webp[..., 0] if webp.ndim == 3 else webp, row)
    with zipfile.ZipFile(io.BytesIO((await answer("zip")).content)) as file:
        assert file.namelist() == ["00000_6.png", "00001_6.png"]
        assert np.array_equal(np.asarray(Image.open(file.open("00001_6.png"))), images[1])
    body = (await answer("json")).json()
    assert (body["model"], body["seed"]) == ("cgan", 4)
    assert [item["label"] for item in body["images"]] == [6, 6]
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["images"][0]["png"]))))
    assert np.array_equal(first, images[0])


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("application/zip;q=0.4, application/json;q=0.9", "application/json"),
        ("image/*;q=0.5, image/png;q=0.1", "image/webp"),
        ("text/html, */*;q=0.1", "image/png"),
    ],
)
async def test_the_accept_header_chooses(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    answer = await client.post("/generate?model=gan&seed=1", headers={"Accept": accept})
    assert answer.headers["content-type"] == kind
    assert answer.headers["vary"] == "Accept"


async def test_a_format_goes_before_the_accept_header(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate?model=gan&format=zip", headers={"Accept": "image/webp"})
    assert answer.headers["content-type"] == "application/zip"


async def test_a_get_with_a_seed_is_for_ever_and_can_be_held_against_its_tag(client: httpx.AsyncClient) -> None:
    named = await client.get("/generate?model=gan&seed=1")
    # Other weights may come to be called so.
    assert named.headers["cache-control"] == "public, max-age=0, s-maxage=1, must-revalidate"
    url = named.headers["content-location"]
    answer = await client.get(url)
    tag = answer.headers["etag"]
    assert tag == named.headers["etag"]
    assert "immutable" in answer.headers["cache-control"]
    assert not tag.startswith("W/")
    for held in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        unchanged = await client.get(url, headers={"If-None-Match": held})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == tag
    assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_tags_differ_where_bytes_may(client: httpx.AsyncClient) -> None:
    urls = ["seed=1", "seed=2", "seed=1&n=2", "seed=1&first=1", "seed=1&format=webp", "seed=1&format=json"]
    tags = [(await client.get(f"/generate?model=gan&{url}")).headers["etag"] for url in urls]
    tags.append((await client.get("/generate?model=vae&seed=1")).headers["etag"])
    tags += [(await client.get(f"/generate?model=cgan&seed=1&digit={digit}")).headers["etag"] for digit in (1, 2)]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/generate?model=gan"),
        ("POST", "/generate?model=gan&seed=1"),
        ("GET", "/generate?model=gan&seed=1&format=events"),
    ],
)
async def test_what_is_no_pure_get_is_not_kept(client: httpx.AsyncClient, method: str, url: str) -> None:
    answer = await client.request(method, url)
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


async def test_a_get_says_all_in_its_url(client: httpx.AsyncClient) -> None:
    words = {"model": "gan", "seed": 1}
    for body in ({"json": words}, {"data": words}, {"files": {"image": b"x"}, "data": words}):
        assert "POST" in problem(await client.request("GET", "/generate", **body), 415)
    bare = {"Content-Type": "application/json"}
    assert (await client.get("/generate", params=words, headers=bare)).status_code == 200


async def test_the_prior_of_the_codes_can_be_asked_for(client: httpx.AsyncClient) -> None:
    for name in ("ae", "swae", "vae"):
        base = {"model": name, "seed": 1}
        default, fitted, standard = [
            await client.post("/generate", params={**base, **more})
            for more in ({}, {"prior": "fitted"}, {"prior": "standard"})
        ]
        assert default.content == fitted.content != standard.content
        assert httpx.URL(standard.headers["content-location"]).params["prior"] == "standard"


async def test_samplers_steps_and_guidance_change_the_image(client: httpx.AsyncClient) -> None:
    base = {"model": "ddpm", "seed": 1, "digit": 3, "steps": 4}
    variants = [{}, {"steps": 5}, {"sampler": "ddim"}, {"sampler": "ddpm"}, {"guidance": 4}, {"digit": 4}]
    answers = [await client.post("/generate", params={**base, **variant}) for variant in variants]
    assert all(answer.status_code == 200 for answer in answers)
    assert len({answer.content for answer in answers}) == len(variants)


def opened(kind: str, content: bytes) -> tuple[list[np.ndarray], list[int]]:
    """Images and labels of a package."""
    if kind == "npz":
        arrays = np.load(io.BytesIO(content))
        return list(arrays["images"]), arrays["labels"].tolist()
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            assert file.testzip() is None
            # Each says its size before it, as readers that begin at the beginning need it.
            assert not any(member.flag_bits & 8 for member in file.infolist())
            files = [(name, file.read(name)) for name in file.namelist()]
        return [picture(data) for _, data in files], [int(name[6]) for name, _ in files]
    items = (
        json.loads(content)["images"] if kind == "json" else [data for name, data in events(content) if name == "image"]
    )
    return [picture(base64.b64decode(item["png"])) for item in items], [item["label"] for item in items]


def picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def events(content: bytes) -> list[tuple[str, dict]]:
    """Names and data of server-sent events."""
    lines = [part.split("\n") for part in content.decode().split("\n\n")[:-1]]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


@pytest.mark.parametrize("kind", ["zip", "npz", "json", "events"])
async def test_many_images_stream_and_are_what_few_at_a_time_are(client: httpx.AsyncClient, kind: str) -> None:
    query = {"model": "cgan", "digit": [3, 8], "seed": 6, "format": kind}
    content = b""
    async with client.stream("POST", "/generate", params={**query, "n": 40}) as answer:
        assert answer.status_code == 200
        assert "content-length" not in answer.headers
        assert answer.headers.get("x-accel-buffering") == ("no" if kind == "events" else None)
        assert kind == "events" or int(answer.headers["x-batch"]) == 8  # events begin before anybody knows
        async for part in answer.aiter_raw():
            content += part
    images, labels = opened(kind, content)
    assert labels == [3, 8] * 20
    few, _ = opened(kind, (await client.post("/generate", params={**query, "n": 10, "first": 30})).content)
    assert np.array_equal(images[30:], few)


async def test_events_tell_what_comes_and_end(client: httpx.AsyncClient) -> None:
    answer = await client.get("/generate?model=gan&n=3&seed=2", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.content)
    assert [name for name, _ in found] == ["start", "progress", "image", "image", "image", "end"]
    assert found[0][1]["n"] == 3
    assert found[1][1] == {"ahead": 0, "gone": 0, "links": 3, "seconds": found[1][1]["seconds"]}
    assert found[0][1]["model"] == "gan"
    assert [data["index"] for name, data in found if name == "image"] == [0, 1, 2]


async def test_previews_show_images_on_their_way_and_change_nothing(client: httpx.AsyncClient) -> None:
    query = {"model": "ddpm", "digit": 4, "steps": 6, "n": 2, "seed": 5, "format": "events"}
    plain = events((await client.post("/generate", params=query)).content)
    found = events((await client.post("/generate", params={**query, "previews": True})).content)
    drawn = [data for name, data in found if name == "image"]
    assert drawn == [data for name, data in plain if name == "image"]
    assert "preview" not in {name for name, _ in plain}
    assert "previews" not in found[0][1]["url"]
    previews = [data for name, data in found if name == "preview"]
    assert {data["index"] for data in previews} == {0, 1}
    assert len(previews) >= 4
    last = drawn[0]["png"]
    assert last not in {data["png"] for data in previews}
    assert all(picture(base64.b64decode(data["png"])).shape == (28, 28) for data in previews)
    gone = [data["gone"] for name, data in found if name == "progress"]
    assert gone == sorted(set(gone))
    assert gone[0] == 0
    assert "events" in problem(await client.post("/generate?model=ddpm&previews=true"), 422)


async def test_what_goes_wrong_before_the_first_image_of_a_stream_has_its_status(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    assert "takes none" in problem(await client.post("/generate?model=gan&n=40&format=npz&guidance=2"), 422)
    await client.post("/generate?model=ddpm&n=8&steps=20")  # so that it is known how long it takes
    late = await client.post("/generate?model=ddpm&n=64&steps=1000&format=npz&timeout=0.001")
    assert "this takes about" in problem(late, 504)
    assert app.state.service.engine.outstanding == 0


@pytest.mark.parametrize(("kind", "told"), [("events", True), ("npz", False)])
async def test_a_stream_that_breaks_off_says_so_in_events_and_stays_unfinished_else(
    app: FastAPI, kind: str, told: bool
) -> None:
    sent: list[dict] = []
    engine = app.state.service.engine

    async def send(message: dict) -> None:
        sent.append(message)
        if len(sent) == 3:  # the head, the beginning and the first images are out
            engine.recover(RuntimeError("a bug"))

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/generate",
        "raw_path": b"/generate", "query_string": f"model=gan&n=64&format={kind}".encode(), "root_path": "",
        "headers": [], "client": ("127.0.0.1", 1), "server": ("drawbridge", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert len(sent) > 2, "it did not come in parts"
    finished = [message for message in sent[1:] if not message.get("more_body")]
    assert bool(finished) is told
    if told:
        name, data = events(finished[0]["body"])[-1]
        assert name == "error"
        assert "failed and was restarted" in data["detail"]
    assert engine.outstanding == 0


async def test_a_version_can_be_asked_for_by_its_digest(client: httpx.AsyncClient) -> None:
    digest = (await client.get("/models/gan")).json()["digest"]
    plain, pinned = [(await client.get(f"/generate?model=gan{tail}&seed=1")).content for tail in ("", f"@{digest}")]
    assert plain == pinned
    strange = await client.get("/generate?model=gan@0123456789ab&seed=1")
    assert strange.status_code == 404
    assert digest[:12] in strange.json()["detail"]


async def test_an_answered_request_leaves_nothing_for_the_garbage_collector(client: httpx.AsyncClient) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            pixels(await client.post("/generate", params={"model": "dcgan", "seed": 1}))
        await asyncio.sleep(0.2)  # the log and the watch over callers look back once more
        assert not [one for one in gc.get_objects() if isinstance(one, Ticket)]
    finally:
        gc.enable()
