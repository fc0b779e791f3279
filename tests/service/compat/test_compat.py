"""Clients that nobody here wrote: the packages openai and tritonclient against a running service."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from harness.server import Server
from tests.serving import serving


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights, max_images=64) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(data: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def ours(server: Server, **query: Any) -> np.ndarray:
    answer = httpx.post(f"{server.url}/generate", params={**query, "format": "npz"})
    return np.load(io.BytesIO(answer.content))["images"]


# -- openai ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["seven", "7", "Please draw a SEVEN.", "the digit 7, seven"])
def test_a_prompt_is_a_digit(client: openai.OpenAI, server: Server, prompt: str) -> None:
    answer = client.images.generate(model="cgan", prompt=prompt, n=3, extra_body={"seed": 5})
    drawn = np.array([np.asarray(opened(item.b64_json)) for item in answer.data])
    assert np.array_equal(drawn, ours(server, model="cgan", digit=7, n=3, seed=5))
    assert (answer.size, answer.output_format) == ("28x28", "png")


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_sizes_and_formats(client: openai.OpenAI, server: Server, kind: str) -> None:
    how = {"size": "512x280", "output_format": kind, "response_format": "b64_json"}
    answer = client.images.generate(model="gan", prompt="any", extra_body={"seed": 1}, **how)
    image = opened(answer.data[0].b64_json)
    assert (image.format, image.size) == (kind.upper(), (512, 280))
    if kind == "png":
        (plain,) = ours(server, model="gan", seed=1)
        assert np.array_equal(np.asarray(image)[5::10], plain[:, ((np.arange(512) + 0.5) * 28 / 512).astype(int)])


def test_a_stream_shows_partial_images_and_then_the_image(client: openai.OpenAI, server: Server) -> None:
    asked = {"seed": 3, "num_inference_steps": 12, "guidance_scale": 2.0}
    stream = client.images.generate(
        model="ddpm", prompt="three", stream=True, partial_images=2, size="56x56", extra_body=asked
    )
    events = list(stream)
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert {opened(event.b64_json).size for event in events} == {(56, 56)}
    (plain,) = ours(server, model="ddpm", digit=3, seed=3, steps=12, guidance=2.0)
    assert np.array_equal(np.asarray(opened(events[-1].b64_json))[::2, ::2], plain)
    assert events[0].b64_json != events[-1].b64_json


def test_a_stream_of_a_model_of_one_step_is_its_image(client: openai.OpenAI) -> None:
    (event,) = client.images.generate(model="gan", prompt="", stream=True, partial_images=3)
    assert event.type == "image_generation.completed"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {"cgan", "ddpm"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("vae").owned_by == "drawbridge"


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"prompt": "seven or eight"}, openai.BadRequestError, "one digit"),
        ({"prompt": "12"}, openai.BadRequestError, "one digit"),
        ({"prompt": "7" * 9000}, openai.BadRequestError, "one digit"),
        ({"prompt": "7", "model": "nope"}, openai.NotFoundError, "no model 'nope'"),
        ({"prompt": "7", "model": "gan"}, openai.BadRequestError, "cannot be told"),
        ({"prompt": "7", "size": "1024x1024"}, openai.BadRequestError, "28 to 512"),
        ({"prompt": "7", "n": 65}, openai.BadRequestError, "at most 64"),
        ({"prompt": "7", "response_format": "url"}, openai.BadRequestError, "b64_json"),
        ({"prompt": "7", "stream": True, "extra_body": {"num_inference_steps": 0}}, openai.BadRequestError, "steps"),
    ],
)
def test_errors_have_that_api_s_shape(client: openai.OpenAI, asked: dict, kind: type, said: str) -> None:
    with pytest.raises(kind) as raised:
        client.images.generate(**{"model": "cgan", **asked})
    assert said in raised.value.body["message"]
    assert raised.value.body["type"] in ("invalid_request_error", "not_found_error")
    assert raised.value.body["code"]


# -- tritonclient ------------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Any]:
    from tritonclient import http

    made = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield made
    made.close()


def tensor(name: str, values: list[int], binary: bool = True) -> Any:
    from tritonclient import http

    made = http.InferInput(name, [len(values)], "INT64")
    made.set_data_from_numpy(np.array(values, np.int64), binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_a_batch_is_drawn_with_tensors_either_way(triton: Any, server: Server, binary: bool) -> None:
    from tritonclient import http

    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("images", "labels")]
    inputs = [tensor("digit", [3, 8, 5], binary), tensor("seed", [9], binary)]
    answer = triton.infer("cgan", inputs, outputs=outputs, request_id="mine")
    assert np.array_equal(answer.as_numpy("images"), ours(server, model="cgan", digit=[3, 8, 5], n=3, seed=9))
    assert answer.as_numpy("labels").tolist() == [3, 8, 5]
    assert answer.get_response()["id"] == "mine"


def test_all_outputs_come_where_none_is_named_and_parameters_count(triton: Any, server: Server) -> None:
    asked = {"steps": 4, "guidance": 1.0, "first": 7}
    answer = triton.infer("flow", [tensor("n", [2]), tensor("seed", [1])], parameters=asked)
    assert np.array_equal(answer.as_numpy("images"), ours(server, model="flow", n=2, seed=1, **asked))
    assert answer.as_numpy("labels").shape == (2,)


def test_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("vae")
    assert not triton.is_model_ready("nope")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    told = triton.get_model_metadata("cgan")
    assert [item["name"] for item in told["inputs"]] == ["digit", "n", "seed"]
    assert [item["name"] for item in triton.get_model_metadata("gan")["inputs"]] == ["n", "seed"]
    (version,) = told["versions"]
    assert triton.is_model_ready("cgan", version)
    assert not triton.is_model_ready("cgan", "another")


def test_errors_have_that_protocol_s_shape(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    for name, inputs, said in (
        ("nope", [tensor("n", [1])], "no model"),
        ("gan", [tensor("digit", [3])], "cannot be told"),
        ("cgan", [tensor("digit", [3]), tensor("n", [2])], "as many as"),
        ("cgan", [tensor("n", [1, 2])], "one number"),
        ("cgan", [tensor("seed", [1])], "give `digit` or `n`"),
        ("cgan", [tensor("colour", [1])], "inputs.0.name"),
    ):
        with pytest.raises(InferenceServerException, match=said):
            triton.infer(name, inputs)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"{", None),
        (b"[]", None),
        (b"{}", "9"),
        (b"{}", "x"),
        (b"{}", "9" * 5000),
        (b"{}", None),
        (b'{"inputs": 7}', None),
        (b'{"inputs": [{"name": "n"}]}', None),
        *(
            (b'{"inputs": [{"name": "n", %s}]%s}' % (tensor, more), None)
            for tensor, more in (
                (b'"datatype": "INT64", "shape": [4], "data": [1]', b""),
                (b'"datatype": "INT64", "shape": ["a"], "data": [1]', b""),
                (b'"datatype": "INT64", "shape": [-1], "data": [1]', b""),
                (b'"datatype": ["INT64"], "shape": [1], "data": [1]', b""),
                (b'"datatype": "INT64", "shape": [1], "data": [[1], [2, 3]]', b""),
                (b'"datatype": "INT64", "shape": [1], "data": [-1]', b""),
                (b'"datatype": "INT64", "shape": [1], "data": [1.5]', b""),
                (b'"datatype": "INT64", "shape": [1], "data": ["1"]', b""),
                (b'"datatype": "INT64", "shape": [%s1], "data": [1]' % (b"1," * 8), b""),
                (b'"datatype": "INT64", "shape": [1%s], "data": [1]' % (b"0" * 4000), b""),
                (b'"datatype": "INT64", "shape": [1], "data": [1e30]', b""),
                (b'"datatype": "INT64", "shape": [1], "parameters": []', b""),
                (b'"datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": -8}', b""),
                (b'"datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 3}', b""),
                (b'"datatype": "INT64", "shape": [1], "data": [1]', b', "outputs": ["images"]'),
                (b'"datatype": "INT64", "shape": [1], "data": [1]', b', "parameters": [1]'),
                (b'"datatype": "INT64", "shape": [1], "data": [1]', b', "parameters": {"steps": 7}'),
            )
        ),
    ],
)
def test_bodies_that_will_not_do(server: Server, content: bytes, length: str | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = httpx.post(f"{server.url}/v2/models/gan/infer", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]
