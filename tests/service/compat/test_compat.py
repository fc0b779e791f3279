"""The compatible APIs, called by the clients written for them: the packages openai and tritonclient."""

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
from tests.service.conftest import arrays
from tests.serving import serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights, max_images=64) as server:
        yield server


def generate(server: Server, **query: Any) -> np.ndarray:
    """The images of the native API."""
    return arrays(httpx.post(f"{server.url}/generate", params={**query, "format": "npz"}, timeout=30))["images"]


# -- OpenAI's images API -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def decode(text: str | None) -> Image.Image:
    """A picture in base64."""
    assert text is not None
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


@pytest.mark.parametrize("prompt", ["seven", "7", "Please draw a SEVEN.", "the digit 7, seven"])
def test_a_prompt_names_the_digit(client: openai.OpenAI, server: Server, prompt: str) -> None:
    response = client.images.generate(model="cgan", prompt=prompt, n=3, extra_body={"seed": 5})
    images = np.array([np.asarray(decode(item.b64_json)) for item in response.data])
    assert np.array_equal(images, generate(server, model="cgan", digit=7, n=3, seed=5))
    assert (response.size, response.output_format) == ("28x28", "png")


@pytest.mark.parametrize("format_", ["png", "webp", "jpeg"])
def test_images_come_in_the_requested_size_and_format(client: openai.OpenAI, server: Server, format_: str) -> None:
    options = {"size": "512x280", "output_format": format_, "response_format": "b64_json"}
    response = client.images.generate(model="gan", prompt="any", extra_body={"seed": 1}, **options)
    image = decode(response.data[0].b64_json)
    assert (image.format, image.size) == (format_.upper(), (512, 280))
    if format_ == "png":
        (native,) = generate(server, model="gan", seed=1)
        pixels = np.asarray(image)
        assert np.array_equal(pixels[5::10, 116:396][:, 5::10], native), "the aspect ratio is kept"
        assert not pixels[:, :116].any()
        assert not pixels[:, 396:].any()


def test_a_stream_sends_partial_images_before_the_image(client: openai.OpenAI, server: Server) -> None:
    extensions = {"seed": 3, "num_inference_steps": 12, "guidance_scale": 2.0}
    stream = client.images.generate(
        model="ddpm", prompt="three", stream=True, partial_images=2, size="56x56", extra_body=extensions
    )
    events = list(stream)
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert {decode(event.b64_json).size for event in events} == {(56, 56)}
    (native,) = generate(server, model="ddpm", digit=3, seed=3, steps=12, guidance=2.0)
    assert np.array_equal(np.asarray(decode(events[-1].b64_json))[::2, ::2], native)
    assert events[0].b64_json != events[-1].b64_json


def test_a_stream_of_a_one_step_model_has_no_partial_images(client: openai.OpenAI) -> None:
    (event,) = client.images.generate(model="gan", prompt="", stream=True, partial_images=3)
    assert event.type == "image_generation.completed"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {"cgan", "ddpm"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("vae").owned_by == "drawbridge"


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"prompt": "seven or eight"}, openai.BadRequestError, "name one digit"),
        ({"prompt": "12"}, openai.BadRequestError, "name one digit"),
        ({"prompt": "7" * 9000}, openai.BadRequestError, "name one digit"),
        ({"prompt": "7", "model": "nope"}, openai.NotFoundError, "no model 'nope'"),
        ({"prompt": "7", "model": "gan"}, openai.BadRequestError, "gan is not conditional"),
        (
            {"prompt": "7", "size": "4096x4096"},
            openai.BadRequestError,
            "a width of 28 to 2048 and a height of 28 to 2048",
        ),
        ({"prompt": "7", "n": 65}, openai.BadRequestError, "at most 64"),
        ({"prompt": "7", "response_format": "file"}, openai.BadRequestError, "b64_json"),
        ({"prompt": "7", "stream": True, "extra_body": {"num_inference_steps": 0}}, openai.BadRequestError, "steps"),
    ],
)
def test_openai_errors_have_the_form_of_that_api(
    client: openai.OpenAI, parameters: dict[str, Any], kind: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(kind) as raised:
        client.images.generate(**{"model": "cgan", **parameters})
    body: Any = raised.value.body
    assert message in body["message"]
    assert body["type"] in ("invalid_request_error", "not_found_error")
    assert body["code"] in ("invalid_parameter", "unknown_model")


# -- Open Inference Protocol -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Any]:
    from tritonclient import http

    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, values: list[int], binary: bool = True) -> Any:
    """An input tensor."""
    from tritonclient import http

    result = http.InferInput(name, [len(values)], "INT64")
    result.set_data_from_numpy(np.array(values, np.int64), binary_data=binary)
    return result


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_are_sent_and_received_in_json_or_binary(triton: Any, server: Server, binary: bool) -> None:
    from tritonclient import http

    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("images", "labels")]
    inputs = [tensor("digit", [3, 8, 5], binary), tensor("seed", [9], binary)]
    result = triton.infer("cgan", inputs, outputs=outputs, request_id="lesson-7")
    assert np.array_equal(result.as_numpy("images"), generate(server, model="cgan", digit=[3, 8, 5], n=3, seed=9))
    assert result.as_numpy("labels").tolist() == [3, 8, 5]
    assert result.get_response()["id"] == "lesson-7"


def test_a_request_without_outputs_gets_all_and_may_have_parameters(triton: Any, server: Server) -> None:
    parameters = {"steps": 4, "guidance": 1.0, "first": 7}
    result = triton.infer("flow", [tensor("n", [2]), tensor("seed", [1])], parameters=parameters)
    assert np.array_equal(result.as_numpy("images"), generate(server, model="flow", n=2, seed=1, **parameters))
    assert result.as_numpy("labels").shape == (2,)


def test_health_and_metadata_are_served(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("vae")
    assert not triton.is_model_ready("nope")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata("cgan")
    assert [item["name"] for item in metadata["inputs"]] == ["label", "digit", "n", "seed"]
    assert [item["name"] for item in triton.get_model_metadata("gan")["inputs"]] == ["n", "seed"]
    (version,) = metadata["versions"]
    assert triton.is_model_ready("cgan", version)
    assert not triton.is_model_ready("cgan", "another")


def test_errors_of_the_protocol_have_its_form(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    for name, inputs, message in (
        ("nope", [tensor("n", [1])], "no model 'nope'"),
        ("gan", [tensor("digit", [3])], "gan is not conditional"),
        ("cgan", [tensor("digit", [3]), tensor("n", [2])], "must equal the number of digits"),
        ("cgan", [tensor("n", [1, 2])], "one number"),
        ("cgan", [tensor("seed", [1])], "send `label` or `n`"),
        ("cgan", [tensor("colour", [1])], "inputs.0.name"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            triton.infer(name, inputs)


INVALID_TENSORS = (
    b'"datatype": "INT64", "shape": [4], "data": [1]',
    b'"datatype": "INT64", "shape": ["a"], "data": [1]',
    b'"datatype": "INT64", "shape": [-1], "data": [1]',
    b'"datatype": ["INT64"], "shape": [1], "data": [1]',
    b'"datatype": "INT64", "shape": [1], "data": [[1], [2, 3]]',
    b'"datatype": "INT64", "shape": [1], "data": [-1]',
    b'"datatype": "INT64", "shape": [1], "data": [1.5]',
    b'"datatype": "INT64", "shape": [1], "data": ["1"]',
    b'"datatype": "INT64", "shape": [%s1], "data": [1]' % (b"1," * 8),
    b'"datatype": "INT64", "shape": [1%s], "data": [1]' % (b"0" * 4000),
    b'"datatype": "INT64", "shape": [1], "data": [1e30]',
    b'"datatype": "INT64", "shape": [1], "parameters": []',
    b'"datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": -8}',
    b'"datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 3}',
)
VALID_TENSOR = b'"datatype": "INT64", "shape": [1], "data": [1]'
INVALID_MEMBERS = (b'"outputs": ["images"]', b'"parameters": [1]', b'"parameters": {"steps": 7}')


@pytest.mark.parametrize(
    ("content", "length"),
    [
        *((content, None) for content in (b"{", b"[]", b"{}", b'{"inputs": 7}', b'{"inputs": [{"name": "n"}]}')),
        *((b"{}", length) for length in ("9", "x", "9" * 5000)),
        *((b'{"inputs": [{"name": "n", %s}]}' % tensor, None) for tensor in INVALID_TENSORS),
        *((b'{"inputs": [{"name": "n", %s}], %s}' % (VALID_TENSOR, member), None) for member in INVALID_MEMBERS),
    ],
)
def test_an_invalid_body_is_refused(server: Server, content: bytes, length: str | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    response = httpx.post(f"{server.url}/v2/models/gan/infer", content=content, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]
