"""The Python clients."""

import array
import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from drawbridge import AsyncClient, Client, ServiceError, Unreachable
from harness.server import ROOT, Server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_generate_returns_arrays_and_pictures(client: Client, expected: Callable[..., np.ndarray]) -> None:
    samples = client.generate("cgan", digit=7, n=20, seed=4)
    assert np.array_equal(samples.arrays, expected(model="cgan", digit=7, n=20, seed=4))
    assert samples.labels.tolist() == [7] * 20
    assert [picture.size for picture in samples.pictures()] == [(28, 28)] * 20
    again = client.generate("cgan", digit=7, n=20, seed=samples.seed)
    assert (again.url, again.digest, again.content) == (samples.url, samples.digest, samples.content)


def test_a_request_without_a_seed_gets_a_random_one(client: Client) -> None:
    assert client.generate("gan").seed != client.generate("gan", seed=None).seed


def test_another_format_gives_the_file_as_the_service_sends_it(client: Client, server: Server) -> None:
    samples = client.generate("gan", seed=1, n=4, format="png")
    query = {"model": "gan", "seed": 1, "n": 4, "format": "png"}
    assert samples.content == httpx.get(f"{server.url}/generate", params=query).content


def test_models_and_one_model_are_described(client: Client) -> None:
    assert {"cgan", "gan"} <= {model["name"] for model in client.models()}
    model = client.model("cgan")
    assert model["name"] == "cgan"
    assert model["manifest"]["family"] == "cgan"
    for name in ("nope", "../readyz"):
        with pytest.raises(ServiceError) as raised:
            client.model(name)
        assert raised.value.status == 404


async def test_the_async_client_has_the_same_methods(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        samples = await client.generate("flow", digit=[1, 2], n=4, seed=1, steps=3)
        assert samples.labels.tolist() == [1, 2, 1, 2]
        kinds = [event.kind async for event in client.stream("gan", n=2)]
        assert kinds == ["start", "progress", "image", "image", "end"]
        assert (await client.model("gan"))["name"] == "gan"
        assert "gan" in {model["name"] for model in await client.models()}
        with pytest.raises(ServiceError, match="no model"):
            await client.generate("nope")


def test_inpaint_and_vary_take_files_paths_pictures_and_arrays(client: Client, tmp_path: Path) -> None:
    image = client.generate("cgan", digit=7, seed=4).arrays[0] // 2  # dark enough to be taken for a drawing on black
    mask = np.zeros((28, 28), bool)
    mask[:, :14] = True
    Image.fromarray(image).save(tmp_path / "image.png")
    path = tmp_path / "image.png"
    query: dict[str, Any] = {"label": [7, 7], "n": 2, "seed": 1, "steps": 3}
    samples = client.inpaint("flow", image, mask, **query)
    assert (samples.arrays[:, :, 14:] == image[:, 14:]).all()
    assert (samples.arrays[:, :, :14] != image[:, :14]).any()
    assert (samples.labels.tolist(), samples.seed, samples.url) == ([7, 7], 1, "")
    assert samples.digest == client.model("flow")["digest"]
    for picture in (path, str(path), path.read_bytes(), Image.open(path), torch.from_numpy(image)):
        assert client.inpaint("flow", picture, mask * np.uint8(255), **query).content == samples.content
        assert len(client.vary("ddpm", picture, strength=0.3, steps=2, seed=2, n=2).arrays) == 2
    holes = Image.fromarray(np.dstack((image, image, image, (~mask) * np.uint8(255))))
    assert client.inpaint("flow", holes, **query).content == samples.content
    assert client.vary("flow", image, format="png", seed=None).content.startswith(b"\x89PNG")
    with pytest.raises(ServiceError, match="nothing is to be completed"):
        client.inpaint("flow", image, mask & False)


async def test_the_async_client_inpaints_and_varies(server: Server) -> None:
    image, mask = np.zeros((28, 28), np.uint8), np.eye(28, dtype=bool)
    query: dict[str, Any] = {"seed": 1, "steps": 2}
    with Client(server.url) as client:
        expected = client.inpaint("ddpm", image, mask, **query), client.vary("ddpm", image, **query)
    async with AsyncClient(server.url) as client:
        assert await client.inpaint("ddpm", image, mask, **query) == expected[0]
        assert await client.vary("ddpm", image, **query) == expected[1]


def test_a_stream_shows_unfinished_images(client: Client, expected: Callable[..., np.ndarray]) -> None:
    events = list(client.stream("ddpm", digit=3, steps=5, seed=2, previews=True))
    assert {event.kind for event in events} == {"start", "progress", "preview", "image", "end"}
    (image,) = (event for event in events if event.kind == "image")
    assert np.array_equal(image.array(), expected(model="ddpm", digit=3, steps=5, seed=2)[0])


def test_a_refused_request_raises_the_problem(client: Client) -> None:
    with pytest.raises(ServiceError, match="digit") as raised:
        client.generate("cgan", digit=12)
    assert raised.value.status == 422
    assert raised.value.problem["title"] == "Invalid parameter"
    with pytest.raises(ServiceError, match="digit"):
        list(client.stream("gan", digit=1))


def responses(*outcomes: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives the outcomes one after another, and the list of the requests that it receives."""
    remaining, requests = list(outcomes), []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        outcome = remaining.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return httpx.MockTransport(respond), requests


def npz() -> httpx.Response:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((1, 28, 28), np.uint8), labels=np.array([-1]))
    headers = {"x-seed": "1", "x-model-digest": "d", "content-location": "/generate?"}
    return httpx.Response(200, content=buffer.getvalue(), headers=headers)


def busy(seconds: str) -> httpx.Response:
    return httpx.Response(429, json={"detail": "full"}, headers={"Retry-After": seconds})


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_retries_wait_as_long_as_the_service_says_and_keep_the_seed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    async def sleep(delay: float) -> None:
        delays.append(delay)

    outcomes = (busy("7"), httpx.ConnectError("no"), busy("100000"), httpx.Response(503), npz())
    transport, requests = responses(*outcomes)
    if kind == "sync":
        monkeypatch.setattr(time, "sleep", delays.append)
        with Client("http://test", transport=transport) as client:
            client.generate("gan")
    else:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        async with AsyncClient("http://test", transport=transport) as client:
            await client.generate("gan")
    assert delays == [7, 0.5, 30, 2]
    assert len({json.loads(request.content)["seed"] for request in requests}) == 1


@pytest.mark.parametrize(
    ("outcome", "error"), [(busy("0"), ServiceError), (httpx.ConnectError("refused"), Unreachable)]
)
async def test_retries_end(outcome: Any, error: type[Exception]) -> None:
    transport, requests = responses(*[outcome] * 3)
    async with AsyncClient("http://test", transport=transport, retries=2) as client:
        with pytest.raises(error):
            await client.generate("gan")
    assert len(requests) == 3


@pytest.mark.parametrize("retries", [0, 3])
def test_other_errors_are_not_retried(retries: int) -> None:
    transport, requests = responses(httpx.Response(500, text="not a problem document"))
    with (
        Client("http://test", transport=transport, retries=retries) as client,
        pytest.raises(ServiceError, match="500"),
    ):
        client.generate("gan")
    assert len(requests) == 1


def test_the_key_is_sent() -> None:
    transport, requests = responses(npz())
    with Client("http://test", key="db_secret", transport=transport) as client:
        client.generate("gan")
    assert requests[0].headers["Authorization"] == "Bearer db_secret"


def test_a_stream_that_breaks_off_raises() -> None:
    transport, _ = responses(httpx.Response(200, content=b'event: start\ndata: {"n": 1}\n\n'))
    with Client("http://test", transport=transport) as client, pytest.raises(Unreachable, match="broke off"):
        list(client.stream("gan"))


@pytest.fixture
def proxy_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy at a port without a listener."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxy_port")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_service_on_this_machine_is_called_without_the_proxy(host: str, server: Server) -> None:
    url = server.url.replace("127.0.0.1", host)
    with Client(url, retries=0) as client:
        assert client.models()
    async with AsyncClient(url, retries=0) as async_client:
        assert await async_client.models()


@pytest.mark.usefixtures("proxy_port")
async def test_another_service_is_called_through_the_proxy() -> None:
    with Client("http://192.0.2.1", retries=0) as client, pytest.raises(Unreachable, match="refused"):
        client.models()
    async with AsyncClient("http://192.0.2.1", retries=0) as async_client:
        with pytest.raises(Unreachable, match=r"failed|refused"):
            await async_client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("proxy", "reason"), [("socks5://127.0.0.1:9", r"pip install httpx\[socks\]"), ("socks4://127.0.0.1:9", "scheme")]
)
def test_a_proxy_that_httpx_cannot_use_is_named(
    kind: type[Client | AsyncClient], proxy: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(Unreachable, match=f"ALL_PROXY names a proxy that cannot be used: .*{reason}"):
        kind("http://192.0.2.1")
    kind("http://127.0.0.1")


@pytest.mark.parametrize(
    "digits",
    [
        (1, 2, 3), range(1, 4), np.arange(1, 4), np.array([1, 2, 3], np.uint8), [np.int64(1), np.int8(2), 3],
        torch.tensor([1, 2, 3]), {1: "one", 2: "two", 3: "three"}.keys(), array.array("b", [1, 2, 3]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["label", "digit"])
def test_labels_may_be_any_numbers_in_any_sequence(digits: Any, name: str) -> None:
    transport, requests = responses(npz())
    with Client("http://test", transport=transport) as client:
        client.generate("cgan", **{name: digits})
    assert json.loads(requests[0].content)[name] == [1, 2, 3]


@pytest.mark.parametrize(
    ("label", "sent"),
    [
        ("pizza", ["pizza"]), (["pizza", 3], ["pizza", 3]), (np.str_("çay"), ["çay"]), (("ice cream",), ["ice cream"]),
        (np.array(["pizza", "çay"]), ["pizza", "çay"]), (["pizza", np.int64(3)], ["pizza", 3]),
    ],
)  # fmt: skip
def test_labels_may_be_names(label: Any, sent: list[Any]) -> None:
    transport, requests = responses(npz())
    with Client("http://test", transport=transport) as client:
        client.generate("pictures", label=label)
    assert json.loads(requests[0].content)["label"] == sent


def test_a_label_reaches_the_service(named_server: Server) -> None:
    with Client(named_server.url) as client:
        by_name = client.generate("drawings", label=["pizza", "çay"], n=2, seed=4)
        assert by_name.classes[:2] == ("pizza", "ice cream")
        assert client.generate("gan").classes == ()
        by_number = client.generate("drawings", label=by_name.labels, n=2, seed=4)
        assert by_name.labels.tolist() == [0, 2]
        assert [by_name.classes[label] for label in by_name.labels] == ["pizza", "çay"]
        assert np.array_equal(by_name.arrays, by_number.arrays)
        assert "&label=pizza&label=%C3%A7ay&" in by_name.url
        with pytest.raises(ServiceError, match="drawings has no class 'piza'; its classes are: pizza"):
            client.generate("drawings", label="piza")


@pytest.mark.parametrize("seven", [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)])
def test_any_kind_of_integer_is_a_parameter(seven: Any) -> None:
    transport, requests = responses(npz())
    with Client("http://test", transport=transport) as client:
        client.generate("cgan", digit=seven, seed=seven, n=seven, guidance=np.float32(1.5))
    body = json.loads(requests[0].content)
    assert body == {"model": "cgan", "format": "npz", "digit": [7], "seed": 7, "n": 7, "guidance": 1.5}


def test_the_labels_of_samples_are_labels_of_a_request(client: Client) -> None:
    labels = client.generate("cgan", digit=[3, 5], n=4, seed=1).labels
    assert client.generate("cgan", digit=labels, n=4, seed=2).labels.tolist() == [3, 5, 3, 5]
    assert [event.kind for event in client.stream("cgan", digit=labels[:1])] == ["start", "progress", "image", "end"]


@pytest.mark.parametrize("method", ["models", "model", "generate"])
def test_a_server_that_is_not_drawbridge_raises_a_service_error(method: str) -> None:
    transport, _ = responses(httpx.Response(200, text="<html>"))
    with Client("http://test", transport=transport) as client, pytest.raises(ServiceError, match="http://test"):
        getattr(client, method)(*["gan"] * (method == "model"))


def test_without_numpy_only_arrays_fail_and_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, _ = responses(npz())
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Client("http://test", transport=transport) as client:
        samples = client.generate("cgan", digit=range(3))
    with pytest.raises(ImportError, match="pip install numpy"):
        _ = samples.arrays
    assert samples.content.startswith(b"PK")


def test_importing_the_client_imports_httpx_alone() -> None:
    code = "import sys, drawbridge.cli, drawbridge.commands.draw; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in modules
    assert not modules & {
        "numpy",
        "torch",
        "PIL",
        "pydantic",
        "fastapi",
        "tqdm",
        "models",
        "pictures",
        "service",
        "training",
    }
