"""/generate: responses in every format, how to reproduce them, caching and streams."""

import asyncio
import base64
import dataclasses
import gc
import io
import json
import zipfile
from collections.abc import MutableMapping
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from models import families
from service.codecs import formats
from service.engine.request import Ticket
from tests.service.conftest import arrays, http_scope, picture, pixels, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("name", families.names())
async def test_every_family_generates_a_png_of_28_by_28(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/generate", params={"model": name})
    assert response.headers["content-type"] == "image/png"
    assert pixels(response).shape == (28, 28)
    assert pixels(response).dtype == np.uint8


async def test_the_content_location_reproduces_a_response(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", params={"model": "ddpm", "digit": [3, 4], "n": 3, "steps": 2})
    location = httpx.URL(response.headers["content-location"])
    assert location.params["seed"] == response.headers["x-seed"]
    assert location.params.get_list("label") == ["3", "4"]
    assert (location.params["sampler"], location.params["guidance"]) == ("dpm++2m", "1.6")
    reproduced = await client.get(str(location))
    assert reproduced.content == response.content
    assert reproduced.headers["x-model-digest"] == response.headers["x-model-digest"]


@pytest.mark.parametrize(("digit", "model"), [([], "dcgan"), ([7], "cgan")])
async def test_a_request_without_a_model_uses_the_default_model(
    client: httpx.AsyncClient, digit: list[int], model: str
) -> None:
    response = await client.get("/generate", params={"digit": digit, "seed": 3})
    assert httpx.URL(response.headers["content-location"]).params["model"].startswith(f"{model}@")
    assert response.headers["cache-control"] == "no-store", "the default model is a setting and may change"
    assert response.content == (await client.get(response.headers["content-location"])).content


async def test_requests_without_a_seed_get_different_seeds(client: httpx.AsyncClient) -> None:
    responses = [await client.post("/generate", params={"model": "gan"}) for _ in range(3)]
    assert len({response.headers["x-seed"] for response in responses}) == 3
    assert {response.headers["cache-control"] for response in responses} == {"no-store"}


@pytest.mark.parametrize("name", families.names())
async def test_a_request_for_four_images_equals_four_requests_for_one(client: httpx.AsyncClient, name: str) -> None:
    query = {"model": name, "seed": 5, "format": "npz"}
    together = await client.post("/generate", params={**query, "n": 4})
    apart = [await client.post("/generate", params={**query, "first": i}) for i in range(4)]
    assert np.array_equal(arrays(together)["images"], np.concatenate([arrays(one)["images"] for one in apart]))


async def test_digits_repeat_in_order(client: httpx.AsyncClient) -> None:
    query = {"model": "cgan", "digit": [7, 1], "n": 5, "seed": 0, "format": "npz"}
    result = arrays(await client.post("/generate", params=query))
    assert result["labels"].tolist() == [7, 1, 7, 1, 7]
    assert result["labels"].dtype == np.int64
    assert result["images"].shape == (5, 28, 28)


async def test_the_digit_of_an_image_depends_on_its_index(client: httpx.AsyncClient) -> None:
    query = {"model": "cgan", "digit": [7, 1, 3], "seed": 0, "format": "npz"}
    whole = arrays(await client.post("/generate", params={**query, "n": 5}))
    rest = arrays(await client.post("/generate", params={**query, "n": 3, "first": 2}))
    assert rest["labels"].tolist() == whole["labels"][2:].tolist() == [3, 7, 1]
    assert np.array_equal(rest["images"], whole["images"][2:])


async def test_labels_of_an_unconditional_model_are_minus_one(client: httpx.AsyncClient) -> None:
    assert arrays(await client.post("/generate?model=gan&n=2&format=npz"))["labels"].tolist() == [-1, -1]


async def test_parameters_can_be_in_the_query_the_json_body_or_a_form(client: httpx.AsyncClient) -> None:
    parameters = {"model": "cgan", "digit": [2, 3], "n": 2, "seed": 9}
    expected = (await client.post("/generate", params=parameters)).content
    assert (await client.post("/generate", json=parameters)).content == expected
    assert (await client.post("/generate?model=cgan&n=2", json={"digit": [2, 3], "seed": 9})).content == expected
    form = [("model", (None, "cgan")), ("digit", (None, "2")), ("digit", (None, "3")), ("n", (None, "2"))]
    assert (await client.post("/generate?seed=9", files=form)).content == expected
    twice = await client.post("/generate?model=cgan", json=parameters)
    assert problem(twice, 422) == "in the query and in the body: model; give each parameter once"
    picture_form = {"image": ("a.png", b"x")}
    assert "takes no image" in problem(await client.post("/generate?model=gan", files=picture_form), 422)


async def test_several_images_are_a_grid_in_row_order(client: httpx.AsyncClient) -> None:
    query = {"model": "gan", "seed": 1, "n": 5}
    grid = pixels(await client.post("/generate", params=query))
    assert grid.shape == (2 * 28, 3 * 28)
    images = arrays(await client.post("/generate", params={**query, "format": "npz"}))["images"]
    assert np.array_equal(grid[28:, 28:56], images[4])
    assert not grid[28:, 56:].any()


async def test_every_format_holds_the_same_images(client: httpx.AsyncClient) -> None:
    async def get(format_: str) -> httpx.Response:
        query = {"model": "cgan", "seed": 4, "n": 2, "digit": 6, "format": format_}
        response = await client.post("/generate", params=query)
        assert response.status_code == 200
        return response

    images = arrays(await get("npz"))["images"]
    grid = np.concatenate(list(images), axis=1)
    assert np.array_equal(pixels(await get("png")), grid)
    webp = pixels(await get("webp"))
    assert np.array_equal(webp[..., 0] if webp.ndim == 3 else webp, grid)
    with zipfile.ZipFile(io.BytesIO((await get("zip")).content)) as file:
        assert file.namelist() == ["6/00000.png", "6/00001.png"]
        assert np.array_equal(picture(file.read("6/00001.png")), images[1])
    body = (await get("json")).json()
    assert (body["model"], body["seed"]) == ("cgan", 4)
    assert [(item["label"], item["class"]) for item in body["images"]] == [(6, "6"), (6, "6")]
    assert np.array_equal(picture(base64.b64decode(body["images"][0]["png"])), images[0])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("application/zip;q=0.4, application/json;q=0.9", "application/json"),
        ("image/*;q=0.5, image/png;q=0.1", "image/webp"),
        ("text/html, */*;q=0.1", "image/png"),
    ],
)
async def test_the_accept_header_selects_the_format(client: httpx.AsyncClient, accept: str, media_type: str) -> None:
    response = await client.post("/generate?model=gan&seed=1", headers={"Accept": accept})
    assert response.headers["content-type"] == media_type
    assert response.headers["vary"] == "Accept"


async def test_the_format_parameter_takes_precedence_over_the_accept_header(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate?model=gan&format=zip", headers={"Accept": "image/webp"})
    assert response.headers["content-type"] == "application/zip"


# -- caching -----------------------------------------------------------------------------------------------------------


async def test_a_get_with_a_seed_is_cacheable_and_can_be_revalidated(client: httpx.AsyncClient) -> None:
    by_name = await client.get("/generate?model=gan&seed=1")
    # A reload may replace the weights that have this name.
    assert by_name.headers["cache-control"] == "public, max-age=0, s-maxage=1, must-revalidate"
    url = by_name.headers["content-location"]
    by_version = await client.get(url)
    etag = by_version.headers["etag"]
    assert etag == by_name.headers["etag"]
    assert "immutable" in by_version.headers["cache-control"]
    assert not etag.startswith("W/")
    for known in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        unchanged = await client.get(url, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
    assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_etags_differ_where_the_bytes_may_differ(client: httpx.AsyncClient) -> None:
    queries = ["seed=1", "seed=2", "seed=1&n=2", "seed=1&first=1", "seed=1&format=webp", "seed=1&format=json"]
    etags = [(await client.get(f"/generate?model=gan&{query}")).headers["etag"] for query in queries]
    etags.append((await client.get("/generate?model=vae&seed=1")).headers["etag"])
    etags += [(await client.get(f"/generate?model=cgan&seed=1&digit={digit}")).headers["etag"] for digit in (1, 2)]
    assert len(set(etags)) == len(etags)


@pytest.mark.parametrize("name", ["png", "zip"])
async def test_etags_differ_between_revisions_of_a_format(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    etags = []
    for revision in (7, 8):
        changed = tuple(dataclasses.replace(format_, revision=revision) for format_ in formats.IMAGE_FORMATS)
        monkeypatch.setattr(formats, "IMAGE_FORMATS", changed)
        app.state.service.parse_cache.clear()
        etags.append((await client.get(f"/generate?model=gan&seed=1&format={name}")).headers["etag"])
    app.state.service.parse_cache.clear()
    assert etags[0] != etags[1]


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/generate?model=gan"),
        ("POST", "/generate?model=gan&seed=1"),
        ("GET", "/generate?model=gan&seed=1&format=events"),
    ],
)
async def test_posts_random_seeds_and_events_are_not_cacheable(
    client: httpx.AsyncClient, method: str, url: str
) -> None:
    response = await client.request(method, url)
    assert response.headers["cache-control"] == "no-store"
    assert "etag" not in response.headers


async def test_a_get_with_a_body_is_refused(client: httpx.AsyncClient) -> None:
    parameters = {"model": "gan", "seed": 1}
    for body in ({"json": parameters}, {"data": parameters}, {"files": {"image": b"x"}, "data": parameters}):
        refused = await client.request("GET", "/generate", **body)
        assert "POST" in problem(refused, 415, "unsupported-body")
    assert "POST" in problem(await client.request("GET", "/generate?model=gan", content=b"{}"), 415)
    no_body = {"Content-Type": "application/json"}
    assert (await client.get("/generate", params=parameters, headers=no_body)).status_code == 200


# -- sampling parameters -----------------------------------------------------------------------------------------------


async def test_the_prior_of_the_latent_codes_can_be_chosen(client: httpx.AsyncClient) -> None:
    for name in ("ae", "swae", "vae"):
        query = {"model": name, "seed": 1}
        default, fitted, standard = [
            await client.post("/generate", params={**query, **prior})
            for prior in ({}, {"prior": "fitted"}, {"prior": "standard"})
        ]
        assert default.content == fitted.content != standard.content
        assert httpx.URL(standard.headers["content-location"]).params["prior"] == "standard"


async def test_sampler_steps_guidance_and_digit_change_the_image(client: httpx.AsyncClient) -> None:
    query = {"model": "ddpm", "seed": 1, "digit": 3, "steps": 4}
    changes = [{}, {"steps": 5}, {"sampler": "ddim"}, {"sampler": "ddpm"}, {"guidance": 4}, {"digit": 4}]
    responses = [await client.post("/generate", params={**query, **change}) for change in changes]
    assert all(response.status_code == 200 for response in responses)
    assert len({response.content for response in responses}) == len(changes)


async def test_a_version_can_be_requested_by_its_digest(client: httpx.AsyncClient) -> None:
    digest = (await client.get("/models/gan")).json()["digest"]
    plain, pinned = [(await client.get(f"/generate?model=gan{suffix}&seed=1")).content for suffix in ("", f"@{digest}")]
    assert plain == pinned
    detail = problem(await client.get("/generate?model=gan@0123456789ab&seed=1"), 404, "unknown-model")
    assert digest[:12] in detail


# -- streams -----------------------------------------------------------------------------------------------------------


def parse_container(format_: str, content: bytes) -> tuple[list[np.ndarray], list[int]]:
    """Images and labels of a container."""
    if format_ == "npz":
        result = np.load(io.BytesIO(content))
        return list(result["images"]), result["labels"].tolist()
    if format_ == "zip":
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            assert file.testzip() is None
            # A reader that streams the archive needs each member's size before its data.
            assert not any(member.flag_bits & 8 for member in file.infolist())
            members = [(name, file.read(name)) for name in file.namelist()]
        return [verified_picture(data) for _, data in members], [int(name.split("/")[0]) for name, _ in members]
    if format_ == "json":
        items = json.loads(content)["images"]
    else:
        items = [data for name, data in parse_events(content) if name == "image"]
    return [verified_picture(base64.b64decode(item["png"])) for item in items], [item["label"] for item in items]


def verified_picture(content: bytes) -> np.ndarray:
    """The pixels of a picture file whose checksums are valid."""
    with Image.open(io.BytesIO(content)) as image:
        image.verify()
    return picture(content)


def parse_events(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of server-sent events."""
    lines = [part.split("\n") for part in content.decode().split("\n\n")[:-1]]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


@pytest.mark.parametrize("format_", ["zip", "npz", "json", "events"])
async def test_a_streamed_response_holds_the_images_of_smaller_responses(
    client: httpx.AsyncClient, format_: str
) -> None:
    query = {"model": "cgan", "digit": [3, 8], "seed": 6, "format": format_}
    content = b""
    async with client.stream("POST", "/generate", params={**query, "n": 40}) as response:
        assert response.status_code == 200
        assert "content-length" not in response.headers
        assert response.headers.get("x-accel-buffering") == ("no" if format_ == "events" else None)
        if format_ != "events":  # events start before the batch is known
            assert int(response.headers["x-batch"]) == 8
        async for part in response.aiter_raw():
            content += part
    images, labels = parse_container(format_, content)
    assert labels == [3, 8] * 20
    tail = await client.post("/generate", params={**query, "n": 10, "first": 30})
    assert np.array_equal(images[30:], parse_container(format_, tail.content)[0])


async def test_events_report_progress_and_end(client: httpx.AsyncClient) -> None:
    response = await client.get("/generate?model=gan&n=3&seed=2", headers={"Accept": "text/event-stream"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse_events(response.content)
    assert [name for name, _ in events] == ["start", "progress", "image", "image", "image", "end"]
    start, progress = events[0][1], events[1][1]
    assert (start["n"], start["model"]) == (3, "gan")
    assert progress == {"ahead": 0, "gone": 0, "links": 3, "seconds": progress["seconds"]}
    assert [data["index"] for name, data in events if name == "image"] == [0, 1, 2]


async def test_previews_show_unfinished_images_and_do_not_change_the_result(client: httpx.AsyncClient) -> None:
    query = {"model": "ddpm", "digit": 4, "steps": 6, "n": 2, "seed": 5, "format": "events"}
    plain = parse_events((await client.post("/generate", params=query)).content)
    events = parse_events((await client.post("/generate", params={**query, "previews": True})).content)
    images = [data for name, data in events if name == "image"]
    assert images == [data for name, data in plain if name == "image"]
    assert "preview" not in {name for name, _ in plain}
    assert "previews" not in events[0][1]["url"]
    previews = [data for name, data in events if name == "preview"]
    assert {data["index"] for data in previews} == {0, 1}
    assert len(previews) >= 4
    assert images[0]["png"] not in {data["png"] for data in previews}
    assert all(verified_picture(base64.b64decode(data["png"])).shape == (28, 28) for data in previews)
    done = [data["gone"] for name, data in events if name == "progress"]
    assert done == sorted(set(done))
    assert done[0] == 0
    assert "events" in problem(await client.post("/generate?model=ddpm&previews=true"), 422)


async def test_a_problem_before_the_first_image_of_a_stream_has_its_own_status(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    refused = await client.post("/generate?model=gan&n=40&format=npz&guidance=2")
    assert "guidance: gan does not take it" in problem(refused, 422)
    await client.post("/generate?model=ddpm&n=8&steps=20")  # measures the model's rate
    late = await client.post("/generate?model=ddpm&n=64&steps=1000&format=npz&timeout=0.001")
    problem(late, 504, "too-late")
    assert app.state.service.engine.outstanding == 0


@pytest.mark.parametrize(("format_", "completes"), [("events", True), ("npz", False)])
async def test_a_failing_stream_ends_with_an_error_event_or_incomplete(
    app: FastAPI, format_: str, completes: bool
) -> None:
    engine = app.state.service.engine
    sent: list[MutableMapping[str, Any]] = []
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> MutableMapping[str, Any]:
        for message in received:
            return message
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 3:  # the headers, the beginning and the first images are sent
            engine.recover(RuntimeError("a bug"))

    await app(http_scope("/generate", f"model=gan&n=64&format={format_}"), receive, send)
    assert sent[0]["status"] == 200
    assert len(sent) > 2, "the response was not sent in parts"
    last = [message for message in sent[1:] if not message.get("more_body")]
    assert bool(last) is completes
    if completes:
        name, data = parse_events(last[0]["body"])[-1]
        assert name == "error"
        assert data["type"] == "urn:drawbridge:problem:draw-failed"
    assert engine.outstanding == 0


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_a_finished_request_leaves_no_reference_cycle(client: httpx.AsyncClient) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            pixels(await client.post("/generate", params={"model": "dcgan", "seed": 1}))
        await asyncio.sleep(0.2)  # the log and the disconnect monitor hold requests for a while
        assert not [found for found in gc.get_objects() if isinstance(found, Ticket)]
    finally:
        gc.enable()
