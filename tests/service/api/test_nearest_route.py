"""/nearest: the training images nearest to an upload, whether it is a copy, refusals, and indexes that change."""

import asyncio
import base64
import dataclasses
import io
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from torch import Tensor

from drawbridge import AsyncClient, Client
from models import nearest, store
from models.pixels import to_pixels, to_unit
from service.app import Application, create_app
from service.generation.nearest import MAX_SEARCHES
from service.server.weights_poll import WeightsPoll
from service.settings import Settings
from tests.conftest import CLASSES, manifest_of, small
from tests.service.conftest import asgi_client, http_scope, picture, problem
from tests.service.listening import listen

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIGITS, PICTURES = "d" * 64, "e" * 64


def random_images(shape: tuple[int, ...], seed: int, count: int = 300) -> Tensor:
    """Images [count, C, H, W] uint8 with a black border, which says that digits are light on dark."""
    images = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    images[..., 0, :] = images[..., -1, :] = images[..., 0] = images[..., -1] = 0
    return images


DIGIT_IMAGES, PICTURE_IMAGES = random_images((1, 28, 28), 1), random_images((3, 24, 32), 1)


def index_of(images: Tensor, digest: str, classes: tuple[str, ...], labels: Tensor | None = None) -> bytes:
    """The file of an index with held-out distances 1000 to 1990, of which at most 1000 is near."""
    labels = torch.arange(len(images)) % len(classes) if labels is None else labels
    held_out = torch.arange(1000.0, 2000, 10)
    about = {"name": "random", "digest": digest, "classes": classes, "attribution": "the tests, CC0"}
    return nearest.build(images, labels, held_out, 1000.0, **about)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights `cgan` and `gan` of digits and `pictures` in colour, with an index for each data; `other` has none."""
    root = tmp_path_factory.mktemp("weights")
    for name, family, shape, classes, digest in (
        ("cgan", "cgan", (1, 28, 28), tuple("0123456789"), DIGITS),
        ("gan", "gan", (1, 28, 28), (), DIGITS),
        ("pictures", "cgan", (3, 24, 32), CLASSES, PICTURES),
        ("other", "gan", (1, 28, 28), (), "f" * 64),
        ("wide", "gan", (1, 28, 56), (), DIGITS),
    ):
        made = small(family, shape, len(classes) or 10).for_sampling()
        uploads = "picture" if name in ("pictures", "wide") else "digit"
        dataset = {"name": "path/to/random", "digest": digest}
        store.save(
            root / name, made, dataclasses.replace(manifest_of(made, classes), dataset=dataset, uploads=uploads), b""
        )
    nearest.path(root, "random", DIGITS).write_bytes(index_of(DIGIT_IMAGES, DIGITS, tuple("0123456789")))
    unlabelled = torch.where(torch.arange(300) == 7, -1, torch.arange(300) % 5)
    nearest.path(root, "random", PICTURES).write_bytes(index_of(PICTURE_IMAGES, PICTURES, CLASSES, unlabelled))
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(root: Path) -> AsyncIterator[Application]:
    application = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with application.router.lifespan_context(application):
        yield application


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    async with asgi_client(app) as client:
        yield client


def file_of(image: Tensor) -> bytes:
    """An image [C, H, W] uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_pixels(to_unit(image[None]))[0].numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def upload(image: Tensor) -> dict[str, bytes]:
    return {"image": file_of(image)}


def changed(image: Tensor, by: int) -> Tensor:
    """The image with another value `by` away in 100 of its pixels, so that it is 10 * by away from it."""
    values = image.flatten().long()
    inside = (values > 20).nonzero()[:100, 0]
    values[inside] += torch.where(values[inside] > 127, -by, by)
    return values.view_as(image).to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [("cgan", DIGIT_IMAGES, "0123456789"), ("gan", DIGIT_IMAGES, "0123456789"), ("pictures", PICTURE_IMAGES, CLASSES)],
)
async def test_a_training_image_is_found_with_its_number_its_label_and_its_pixels(
    client: httpx.AsyncClient, name: str, images: Tensor, classes: tuple[str, ...]
) -> None:
    response = await client.post(f"/nearest?model={name}&n=3", files=upload(images[123]))
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body["copied"] is True
    assert body["nearer_than"] == 1
    assert body["sentence"] == "Copied: it equals training image 123 in every pixel."
    first, *others = body["neighbours"]
    number = 123 % len(classes)
    assert {key: value for key, value in first.items() if key != "png"} == {
        "index": 123, "label": number, "class": classes[number], "distance": 0,
    }  # fmt: skip
    assert len(others) == 2
    assert others[0]["distance"] <= others[1]["distance"]
    for one in body["neighbours"]:
        pixels = picture(base64.b64decode(one["png"]))
        assert np.array_equal(pixels, to_pixels(to_unit(images[one["index"]][None]))[0].numpy())
    assert body["dataset"] | {"digest": ""} == {
        "name": "random", "digest": "", "images": 300, "attribution": "the tests, CC0",
    }  # fmt: skip
    assert body["model"] == name
    assert body["digest"] == (await client.get(f"/models/{name}")).json()["digest"]


async def test_the_sentence_compares_the_distance_with_that_of_held_out_images(client: httpx.AsyncClient) -> None:
    async def ask(image: Tensor) -> tuple[bool, float, str]:
        body = (await client.post("/nearest?model=cgan", files=upload(image))).json()
        return body["copied"], body["nearer_than"], body["sentence"]

    image = DIGIT_IMAGES[42]
    found = "it is nearer to training image 42 than"
    assert await ask(changed(image, 50)) == (
        True, 1, f"Perhaps copied: {found} all 100 held-out images are to theirs. Of images that are no copies, "
        "1 % are as near.",
    )  # fmt: skip
    assert await ask(changed(image, 100)) == (
        True, 0.99, f"Perhaps copied: {found} 99 % of 100 held-out images are to theirs. Of images that are no copies, "
        "1 % are as near.",
    )  # fmt: skip
    assert await ask(changed(image, 127)) == (
        False, 0.72, f"Not copied: {found} 72 % of 100 held-out images are to theirs; a copy is nearer than 99 % of "
        "them.",
    )  # fmt: skip


async def test_a_drawn_png_is_taken_as_it_is(client: httpx.AsyncClient) -> None:
    drawn = await client.post("/generate?model=pictures&seed=3&label=pizza")
    named = await client.post("/nearest?model=pictures&n=1", files={"image": drawn.content})
    difference = PICTURE_IMAGES.double() - torch.from_numpy(picture(drawn.content).copy()).movedim(-1, 0)
    expected = difference.flatten(1).norm(dim=1).min()
    assert named.json()["neighbours"][0]["distance"] == pytest.approx(float(expected))
    bright = 255 - DIGIT_IMAGES[5]
    for polarity, copied in (("auto", True), ("dark-on-light", True), ("light-on-dark", False)):
        response = await client.post("/nearest", params={"model": "cgan", "polarity": polarity}, files=upload(bright))
        assert response.json()["copied"] is copied


async def test_an_upload_may_be_base64_in_json(client: httpx.AsyncClient) -> None:
    text = base64.b64encode(file_of(DIGIT_IMAGES[9])).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        response = await client.post("/nearest", json={"model": "gan", "n": 1, "image": image})
        assert response.json()["neighbours"][0]["index"] == 9


async def test_an_image_without_a_label_has_no_class(client: httpx.AsyncClient) -> None:
    (found,) = (await client.post("/nearest?model=pictures&n=1", files=upload(PICTURE_IMAGES[7]))).json()["neighbours"]
    assert (found["index"], found["label"], found["class"]) == (7, -1, None)


async def test_the_answer_is_the_same_alone_and_beside_other_requests(client: httpx.AsyncClient) -> None:
    def post(number: int) -> Any:
        return client.post("/nearest?model=cgan&n=9", files=upload(changed(DIGIT_IMAGES[number], 60)))

    alone = [(await post(number)).content for number in range(12)]
    others = [client.post(f"/generate?model={name}&n=4") for name in ("cgan", "gan", "pictures")]
    together = await asyncio.gather(*(post(number) for number in range(12)), *others)
    assert [response.content for response in together[:12]] == alone
    assert len(set(alone)) == 12


async def test_models_say_whether_their_training_images_can_be_found(client: httpx.AsyncClient) -> None:
    models = (await client.get("/models")).json()["models"]
    assert {model["name"]: model["nearest"] for model in models} == {
        "cgan": True, "gan": True, "pictures": True, "other": False, "wide": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["other", "wide"])
async def test_without_an_index_the_problem_says_how_to_write_one(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(f"/nearest?model={name}", files=upload(DIGIT_IMAGES[0]))
    assert problem(response, 404, "no-index") == (
        f"there is no index of random, the training images of {name}: write one into the directory of the weights with "
        f"`drawbridge nearest {name}`, and reload the service"
    )


async def test_requests_that_are_wrong_say_what_is(client: httpx.AsyncClient) -> None:
    image = upload(DIGIT_IMAGES[0])
    for query, files, message in (
        ("model=cgan", None, "image: send an image"),
        ("model=cgan", [("image", image["image"])] * 2, "at most 0 more are allowed"),
        ("model=cgan&n=0", image, "n: Input should be greater than or equal to 1"),
        ("model=cgan&n=101", image, "n: Input should be less than or equal to 100"),
        ("model=cgan&seed=1", image, "seed: unknown parameter; the parameters are: model, n, polarity"),
        ("model=pictures&polarity=light-on-dark", image, "polarity: only for models of digits"),
        ("model=cgan", {"image": b"text"}, "not a readable PNG"),
        ("n=3", image, "model: Field required"),
    ):
        assert message in problem(await client.post(f"/nearest?{query}", files=files), 422, "invalid-parameter")
    problem(await client.post("/nearest?model=nope", files=image), 404, "unknown-model")
    wrong_type = await client.post("/nearest?model=cgan", files=image, headers={"Accept": "image/png"})
    problem(wrong_type, 406, "not-acceptable")


async def test_the_openapi_document_names_both_problems_of_404(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/nearest"]["post"]
    assert operation["responses"]["404"]["description"] == "No such model; No index of the training images"
    assert {"413", "415", "422", "429"} <= operation["responses"].keys()
    assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data"}


@pytest.fixture
def held(app: Application) -> Iterator[threading.Event]:
    """While this event is not set, no search begins."""
    free = threading.Event()
    app.state.service.nearest.thread.submit(free.wait)
    yield free
    free.set()


async def test_the_event_loop_goes_on_and_searches_that_wait_are_bounded(
    app: Application, client: httpx.AsyncClient, held: threading.Event
) -> None:
    image = upload(DIGIT_IMAGES[1])
    waiting = [asyncio.create_task(client.post("/nearest?model=cgan", files=image)) for _ in range(MAX_SEARCHES)]
    while app.state.service.nearest.searches < MAX_SEARCHES:
        await asyncio.sleep(0.01)
    assert (await client.post("/generate?model=gan")).status_code == 200
    refused = await client.post("/nearest?model=cgan", files=image)
    assert "try again in 1 s" in problem(refused, 429, "queue-is-full")
    assert refused.headers["retry-after"] == "1"
    held.set()
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
    assert app.state.service.nearest.searches == 0


@pytest.mark.usefixtures("held")
async def test_a_client_that_disconnects_takes_its_search_with_it(app: Application) -> None:
    image = base64.b64encode(file_of(DIGIT_IMAGES[1])).decode()
    body, sent = f'{{"model": "cgan", "image": "{image}"}}'.encode(), list[dict[str, Any]]()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    service = app.state.service

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        while not service.nearest.searches:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**http_scope("/nearest"), "headers": [(b"content-type", b"application/json")]}
    await asyncio.wait_for(app(scope, receive, send), 10)
    assert service.nearest.searches == 0
    assert service.nearest.thread._work_queue.qsize() <= 1
    assert sent[0]["status"] == 499


async def test_reloads_find_new_indexes_and_keep_those_whose_file_is_damaged(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cgan", "gan"):
        (tmp_path / name).symlink_to(root / name)
    file, content = nearest.path(tmp_path, "random", DIGITS), nearest.path(root, "random", DIGITS).read_bytes()
    store.write_atomic(file, content[:-1])
    app = create_app(Settings(weights=tmp_path, device="cpu", max_batch_size=4))
    with caplog.at_level(logging.ERROR):
        async with app.router.lifespan_context(app), asgi_client(app) as client:

            async def ask() -> httpx.Response:
                return await client.post("/nearest?model=cgan&n=1", files=upload(DIGIT_IMAGES[3]))

            damaged = problem(await ask(), 404, "no-index")
            assert f"{file.name} is no usable index" in damaged
            assert "write it again with `drawbridge nearest MODEL`" in damaged
            ready = await client.get("/readyz")
            assert ready.status_code == 200
            assert "write it again" in ready.json()["broken"][file.name]
            assert (await client.get("/readyz?model=cgan")).json()["broken"] == {}
            assert not (await client.get("/models/cgan")).json()["nearest"]
            assert "an index of training images is not used" in caplog.text

            store.write_atomic(file, content)
            await app.reload()
            assert (await ask()).json()["neighbours"][0]["index"] == 3
            assert (await client.get("/readyz")).json()["broken"] == {}
            store.write_atomic(file, content[:1000])
            await app.reload()
            assert (await ask()).json()["neighbours"][0]["index"] == 3, "the file that was open is intact"
            assert file.name in (await client.get("/readyz")).json()["broken"]
            file.unlink()
            await app.reload()
            problem(await ask(), 404, "no-index")

            file.write_bytes(content)
            await app.reload()
            file.write_bytes(content[: len(content) // 2])
            assert "is no usable index" in problem(await ask(), 404, "no-index")
            assert (await client.post("/generate?model=cgan")).status_code == 200


async def test_both_clients_find_the_nearest_images(app: Application) -> None:
    image = DIGIT_IMAGES[77, 0].numpy()
    async with listen(app) as port:
        url = f"http://127.0.0.1:{port}"
        with Client(url) as client:
            found = await asyncio.to_thread(client.nearest, "cgan", image, n=2)
        async with AsyncClient(url) as client:
            assert await client.nearest("cgan", file_of(DIGIT_IMAGES[77]), n=2, polarity=None) == found
    assert (found.copied, found.nearer_than, len(found.neighbours)) == (True, 1, 2)
    assert found.sentence.startswith("Copied: it equals training image 77")
    first = found.neighbours[0]
    assert (first.index, first.label, first.class_name, first.distance) == (77, 7, "7", 0)
    assert np.array_equal(picture(first.png), image)
    assert found.dataset["attribution"] == "the tests, CC0"


async def test_polling_notices_a_new_index(tmp_path: Path) -> None:
    poll = WeightsPoll(tmp_path, 1e-9)
    assert not poll.changed()
    nearest.path(tmp_path, "other", DIGITS).touch()
    assert not poll.changed(), "a change counts once two polls see it"
    assert poll.changed()
