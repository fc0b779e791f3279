"""OpenAI's images API as its own client uses it: sizes, URLs, prompts, and clients that expect more than is there."""

import base64
import dataclasses
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
from service.compat.prompts import digits_in, labels_in
from service.engine.catalog import Model
from service.engine.runner import Runner
from service.errors import InvalidParameter
from tests.conftest import manifest_of, small
from tests.service.conftest import arrays
from tests.serving import serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights, max_images=300) as server:
        yield server


def connect(url: str) -> openai.OpenAI:
    """OpenAI's client."""
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with connect(f"{server.url}/v1") as client:
        yield client


def decode(content: bytes) -> Image.Image:
    """The picture in a file."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def generate(server: Server, **query: Any) -> np.ndarray:
    """The images of the native API."""
    return arrays(httpx.post(f"{server.url}/generate", params={**query, "format": "npz"}, timeout=30))["images"]


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "7", "seven", "A SEVEN!", "a 7.", "the digit 7, seven", "digit: 7", "#7", "label_7", "(7)", "seven-segment 7",
        "a 28x28 image of a 7", "28×28, seven", "28 x 28 pixels: a 7", "28 by 28 seven", "a seven in 8k", "8K seven",
        "an 8-bit seven", "an 8 bit 7", "7, 300 dpi, 100% ink", "28px seven", "a one-line drawing of a 7", "a 3d seven",
        "hand-written seven", "v2 of a 7", "something like a seven", "a seven's shape",
    ],
)  # fmt: skip
def test_a_prompt_names_a_digit(prompt: str) -> None:
    assert digits_in(prompt) == [7]


@pytest.mark.parametrize(
    "prompt", ["", "  ", "any", "a digit", "A random digit.", "handwritten number", "an mnist image"]
)
def test_a_prompt_asks_for_any_digit(prompt: str) -> None:
    assert digits_in(prompt) == []


@pytest.mark.parametrize(
    "prompt",
    [
        "twenty-one", "twenty one", "Twenty-One", "ten", "a hundred", "12", "1.5", "seven or eight", "7 8", "3.14",
        "thirty-seven", "a digit, 12", "1-2", "7 of 2024", "7" * 9000,
    ],
)  # fmt: skip
def test_other_numbers_and_several_digits_are_refused(prompt: str) -> None:
    with pytest.raises(InvalidParameter, match="name one digit from 0 to 9"):
        digits_in(prompt)


@pytest.mark.parametrize("prompt", ["a red sports car", "8k", "28x28", "someone", "?", "stone", "digital art"])
def test_a_prompt_that_names_no_digit_is_refused_with_what_can_be_named(client: openai.OpenAI, prompt: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(model="cgan", prompt=prompt)
    assert 'name one digit from 0 to 9, as a word or a numeral, or ask for "any"' in str(raised.value)


# -- prompts for other classes than digits -----------------------------------------------------------------------------

FOODS = (
    "pizza", "ice-cream", "hot dog", "dog", "travel-places", "cherries", "Zebra", "zebra", "çay", "a", "bread & butter",
    "class 12", "🍕",
)  # fmt: skip


def model_with(*classes: str, name: str = "foods") -> Model:
    """A model with these classes, of which only the manifest is used."""
    manifest = dataclasses.replace(manifest_of(small("cgan" if classes else "gan")), classes=classes)
    return Model(name, manifest, Runner.__new__(Runner))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a pizza", "pizza"), ("Two PIZZAS, please!", "pizza"), ("pizza's crust, pizza", "pizza"),
        ("ice cream", "ice-cream"), ("three ice creams on a table", "ice-cream"), ("ICE_CREAM", "ice-cream"),
        ("a dog", "dog"), ("a hot dog", "hot dog"), ("hot-dogs", "hot dog"),
        ("travel and places", "travel-places"), ("travel & places", "travel-places"),
        ("a travel place", "travel-places"),
        ("one cherry", "cherries"), ("cherries", "cherries"), ("a Zebra", "Zebra"), ("zebras... a zebra", "zebra"),
        ("bir çay", "çay"), ("c\u0327ay", "çay"), ("ÇAY", "çay"), ("a", "a"), ("the letter a", "a"),
        ("bread and butter", "bread & butter"), ("butter", None), ("class-12", "class 12"), ("🍕", "🍕"),
        ("12", None), ("pizzeria", None), ("a hot day with a pizza", "pizza"),
    ],
)  # fmt: skip
def test_a_prompt_names_a_class(prompt: str, expected: str | None) -> None:
    model = model_with(*FOODS)
    if expected is None:
        with pytest.raises(
            InvalidParameter, match=r'prompt: name one class of foods, or ask for "any"; (GET /models|the nearest)'
        ):
            labels_in(prompt, model)
    else:
        assert labels_in(prompt, model) == [expected]


@pytest.mark.parametrize("prompt", ["", " ", "any", "Anything.", "a random picture"])
def test_a_prompt_asks_for_any_class(prompt: str) -> None:
    assert labels_in(prompt, model_with("pizza", "ice cream")) == []
    assert labels_in(prompt, model_with()) == []


def test_a_prompt_that_names_several_classes_or_none_is_refused() -> None:
    model = model_with("pizza", "ice cream", "Zebra", "zebra")
    for prompt, problem in (
        ("a pizza and an ice cream", "this prompt names pizza, ice cream"),
        ("A ZEBRA", "this prompt names Zebra, zebra"),
        ("any pizza or zebra", "this prompt names pizza, zebra"),
        ("a car", "its classes are: pizza, ice cream, Zebra, zebra"),
    ):
        with pytest.raises(InvalidParameter, match=f'prompt: name one class of foods, or ask for "any"; {problem}'):
            labels_in(prompt, model)
    for prompt in ("a pizza", "seven", "a digit 7"):
        with pytest.raises(InvalidParameter, match='foods is not conditional; ask for "any"'):
            labels_in(prompt, model_with())


@pytest.mark.timeout(8)
@pytest.mark.parametrize("prompt", ["kind " * 6400, "a-" * 16_000, "kind kind 1 " * 2600, "x" * 32_000])
def test_a_long_prompt_for_many_classes_takes_linear_time(prompt: str) -> None:
    model = model_with(*(f"kind kind {i}" for i in range(1000)))
    with pytest.raises(InvalidParameter):
        labels_in(f"{prompt} kind kind 2 kind kind 3", model)


def test_the_prompt_s_class_is_generated_in_the_model_s_size(named_weights: Path) -> None:
    with serving(named_weights) as server, connect(f"{server.url}/v1") as client:
        for prompt, label in (("an ice-cream", "ice cream"), ("zebra", 4)):
            native = generate(server, model="pictures", label=label, seed=5)[0]
            for size, scale in (("auto", 1), ("32x24", 1), ("96x72", 3)):
                response = client.images.generate(model="pictures", prompt=prompt, size=size, extra_body={"seed": 5})
                image = decode(base64.b64decode(response.data[0].b64_json or ""))
                assert image.size == (32 * scale, 24 * scale)
                assert np.array_equal(np.asarray(image)[::scale, ::scale], native)
        url = client.images.generate(
            model="pictures", prompt="zebra", size="1024x1024", response_format="url", extra_body={"seed": 5}
        ).data[0].url or ""  # fmt: skip
        assert "&label=zebra&" in url
        large = np.asarray(decode(httpx.get(url, timeout=30).content))
        assert np.array_equal(large[128:896:32, ::32], native), "the aspect ratio is kept"
        assert not large[:128].any()
        assert not large[896:].any()
        for prompt, size, problem in (
            ("a car", "auto", "its classes are: pizza, ice cream"),
            ("seven", "auto", "its classes are: pizza, ice cream"),
            ("pizza", "28x28", "a width of 32 to 2048 and a height of 24 to 2048"),
        ):
            with pytest.raises(openai.BadRequestError, match=problem):
                client.images.generate(model="pictures", prompt=prompt, size=size)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["256x256", "1024x1024", "1024x1536", "1536x1024", "1792x1024", "2048x2048", "auto"])
def test_the_sizes_that_clients_send_are_taken(client: openai.OpenAI, size: str) -> None:
    response = client.images.generate(model="gan", prompt="any", size=size, extra_body={"seed": 1})
    expected = (28, 28) if size == "auto" else tuple(map(int, size.split("x")))
    image = response.data[0].b64_json
    assert image is not None
    assert decode(base64.b64decode(image)).size == expected


def test_many_large_images_are_refused_with_the_number_that_is_allowed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n: at most 256 images of this size"):
        client.images.generate(model="gan", prompt="any", size="1024x1024", n=257)


def test_large_images_are_streamed(client: openai.OpenAI, server: Server) -> None:
    extensions = {"seed": 3, "num_inference_steps": 6}
    stream = client.images.generate(
        model="ddpm", prompt="3", stream=True, partial_images=1, size="1024x1024", extra_body=extensions
    )
    partial, completed = stream
    assert (partial.type, completed.type) == ("image_generation.partial_image", "image_generation.completed")
    image = decode(base64.b64decode(completed.b64_json))
    (native,) = generate(server, model="ddpm", digit=3, seed=3, steps=6)
    assert np.array_equal(np.asarray(image.resize((28, 28), Image.Resampling.NEAREST)), native)


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["png", "webp", "jpeg"])
def test_urls_give_the_images_to_a_plain_get(client: openai.OpenAI, server: Server, format_: str) -> None:
    options: dict[str, Any] = {"size": "56x56", "output_format": format_, "response_format": "url"}
    extensions = {"seed": 5, "first": 2, "num_inference_steps": 4, "guidance_scale": 2.0}
    response = client.images.generate(model="ddpm", prompt="seven", n=3, **options, extra_body=extensions)
    assert response.data is not None
    expected = generate(server, model="ddpm", digit=7, n=3, seed=5, first=2, steps=4, guidance=2.0)
    for item, image in zip(response.data, expected, strict=True):
        assert item.url is not None
        assert item.b64_json is None
        file = httpx.get(item.url, timeout=30)
        assert file.headers["content-type"] == f"image/{format_}"
        assert "immutable" in file.headers["cache-control"]
        picture = decode(file.content)
        assert (picture.format, picture.size) == (format_.upper(), (56, 56))
        if format_ != "jpeg":
            assert np.array_equal(np.asarray(picture.convert("L"))[::2, ::2], image)


def test_urls_of_a_request_without_a_seed_keep_their_images(client: openai.OpenAI) -> None:
    response = client.images.generate(model="gan", prompt="any", n=2, response_format="url")
    assert response.data is not None
    urls = [item.url or "" for item in response.data]
    first, second = [[httpx.get(url, timeout=30).content for url in urls] for _ in range(2)]
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "digits.example.org"}, "http://digits.example.org/v1/images/file?model=gan@"),
        (
            {"Host": "x.org", "X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"},
            "https://x.org/v1/images/file?",
        ),
    ],
)
def test_urls_name_the_host_that_the_client_used(server: Server, headers: dict[str, str], expected: str) -> None:
    body = {"model": "gan", "prompt": "any", "response_format": "url"}
    response = httpx.post(f"{server.url}/v1/images/generations", json=body, headers=headers, timeout=30)
    assert response.json()["data"][0]["url"].startswith(expected)


def test_urls_contain_the_root_path(weights: Path) -> None:
    with serving(weights, root_path="/digits") as server:
        body = {"model": "gan", "prompt": "any", "response_format": "url"}
        response = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=30)
        assert response.json()["data"][0]["url"].startswith(f"{server.url}/digits/v1/images/file?model=gan@")


@pytest.mark.parametrize(
    ("query", "message"),
    [("n=2", "n: at most 1"), ("size=9x9", "size"), ("format=gif", "format"), ("model=gan@0123", "no version")],
)
def test_wrong_urls_are_refused(server: Server, query: str, message: str) -> None:
    response = httpx.get(f"{server.url}/v1/images/file?{query}", timeout=30)
    assert response.status_code in (400, 404)
    assert message in response.json()["error"]["message"]


def test_a_stream_of_urls_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="a stream carries b64_json"):
        client.images.generate(model="gan", prompt="any", response_format="url", stream=True)


# -- edits -------------------------------------------------------------------------------------------------------------

EDITED = np.zeros((28, 28), np.uint8)
EDITED[4:24, 12:16] = 255
UPPER = np.zeros((28, 28), np.uint8)
UPPER[:14] = 255


def png(*channels: np.ndarray) -> bytes:
    """A PNG file of a grey image, or of the channels red, green, blue and alpha."""
    buffer = io.BytesIO()
    Image.fromarray(channels[0] if len(channels) == 1 else np.dstack(channels)).save(buffer, "PNG")
    return buffer.getvalue()


WHITE_MASK = png(UPPER | 255, UPPER | 255, UPPER | 255, 255 - UPPER)
"""A white picture, whose upper half is transparent."""


def native_edit(server: Server, path: str, **query: Any) -> np.ndarray:
    """The images of the native API."""
    files = {"image": png(EDITED), **({"mask": png(UPPER)} if path == "inpaint" else {})}
    response = httpx.post(f"{server.url}/{path}", params={**query, "format": "npz"}, files=files, timeout=30)
    return arrays(response)["images"]


def images_of(response: Any) -> list[np.ndarray]:
    """The images of a response."""
    return [np.asarray(decode(base64.b64decode(item.b64_json))) for item in response.data]


def test_the_transparent_part_of_the_mask_is_edited(client: openai.OpenAI, server: Server) -> None:
    extensions = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 2.0}
    response = client.images.edit(
        model="flow", image=png(EDITED), mask=WHITE_MASK, prompt="seven", n=2, size="56x56", extra_body=extensions
    )
    expected = native_edit(server, "inpaint", model="flow", label=7, n=2, seed=5, steps=3, guidance=2.0)
    assert all(np.array_equal(a[::2, ::2], b) for a, b in zip(images_of(response), expected, strict=True))
    assert (expected[:, 14:] == EDITED[14:]).all()


def test_without_a_mask_the_image_s_transparent_part_is_edited_or_all_of_it(
    client: openai.OpenAI, server: Server
) -> None:
    holes = png(EDITED, EDITED, EDITED, 255 - UPPER)
    (image,) = images_of(client.images.edit(model="ddpm", image=holes, prompt="any", extra_body={"seed": 5}))
    assert np.array_equal(image, native_edit(server, "inpaint", model="ddpm", seed=5)[0])
    for image_or_list in (png(EDITED), [png(EDITED)]):
        (image,) = images_of(
            client.images.edit(model="ddpm", image=image_or_list, prompt="a 4", extra_body={"seed": 5, "strength": 0.7})
        )
        assert np.array_equal(image, native_edit(server, "vary", model="ddpm", label=4, seed=5, strength=0.7)[0])


def test_edits_are_streamed_as_openai_names_their_events(client: openai.OpenAI, server: Server) -> None:
    extensions = {"seed": 3, "num_inference_steps": 6}
    stream = client.images.edit(
        model="ddpm", image=png(EDITED), mask=WHITE_MASK, prompt="3", stream=True, partial_images=1,
        extra_body=extensions,
    )  # fmt: skip
    partial, completed = stream
    assert (partial.type, completed.type) == ("image_edit.partial_image", "image_edit.completed")
    image = np.asarray(decode(base64.b64decode(completed.b64_json)))
    assert np.array_equal(image, native_edit(server, "inpaint", model="ddpm", label=3, seed=3, steps=6)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "cgan"}, "cgan does not edit images; these do: ddpm, flow"),
        ({"model": openai.omit}, "cgan does not edit images; these do: ddpm, flow"),
        ({"mask": png(UPPER)}, "mask: it has no transparent pixels"),
        ({"image": [png(EDITED), png(EDITED)]}, "image: send one image"),
        ({"image": b"x"}, "image: the file is not a readable PNG"),
        ({"prompt": "a red sports car"}, "name one digit from 0 to 9"),
        ({"response_format": "url"}, "response_format: no URL holds an edited image"),
        ({"size": "9x9"}, "size: auto, or WIDTHxHEIGHT"),
        ({"extra_body": {"strength": 2}}, "strength: Input should be less than or equal to 1"),
    ],
)
def test_edits_that_cannot_be_made_say_why(client: openai.OpenAI, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "flow", "image": png(EDITED), "mask": WHITE_MASK, "prompt": "any", **options}
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.edit(**given)


# -- what is not there -------------------------------------------------------------------------------------------------


def test_a_base_url_without_v1_is_told_to_add_it(server: Server) -> None:
    with connect(server.url) as client:
        for call in (
            lambda: client.images.generate(model="cgan", prompt="7"),
            lambda: client.images.edit(image=b"x", prompt="7"),
            lambda: list(client.models.list()),
            lambda: client.models.retrieve("cgan"),
        ):
            with pytest.raises(openai.NotFoundError, match="add /v1 to the client's base_url"):
                call()
    assert "models" in httpx.get(f"{server.url}/models", timeout=30).json()


def test_variations_say_that_they_are_not_there(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.images.create_variation(image=b"x"),
        lambda: client.chat.completions.create(model="cgan", messages=[]),
    ):
        with pytest.raises(openai.NotFoundError, match="this service has /v1/models") as raised:
            call()
        body: Any = raised.value.body
        assert (body["type"], body["code"]) == ("not_found_error", "not_found")


@pytest.mark.timeout(8)  # quadratic time would be 16 s
@pytest.mark.parametrize("prompt", ["0" * 32_000, "0 " * 16_000, "0x" * 16_000, "a-" * 16_000, "1.1" * 10_000])
def test_a_long_prompt_takes_linear_time(prompt: str) -> None:
    with pytest.raises(InvalidParameter):
        digits_in(prompt + " seven eight")
