"""Labels by name and by number, in every way that a request can name them."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from service.codecs.png import png
from tests.conftest import CLASSES, MANY_CLASSES
from tests.service.conftest import arrays, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = png(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28))


@pytest.fixture(scope="module")
def weights(named_weights: Path) -> Path:
    """The weights that this module's application serves."""
    return named_weights


async def labels(client: httpx.AsyncClient, model: str, label: Any) -> list[int]:
    """The labels of images whose request names `label`, the same in a query, in JSON and in a form."""
    query = {"model": model, "seed": 1, "n": 3, "format": "npz"}
    names = label if isinstance(label, list) else [label]
    form = [*((name, (None, str(value))) for name, value in query.items())]
    form += [("label", (None, str(name))) for name in names]
    responses = [
        await client.get("/generate", params={**query, "label": names}),
        await client.post("/generate", json={**query, "label": label}),
        await client.post("/generate", files=form),
    ]
    contents = {response.content for response in responses}
    assert len(contents) == 1, [response.text[:200] for response in responses]
    return list(arrays(responses[0])["labels"])


# -- what a label may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("pizza", [0, 0, 0]),
        ("PIZZA", [0, 0, 0]),
        ("ice cream", [1, 1, 1]),
        ("çay", [2, 2, 2]),
        ("ÇAY", [2, 2, 2]),
        ("c\u0327ay", [2, 2, 2]),
        ("Zebra", [3, 3, 3]),
        ("zebra", [4, 4, 4]),
        (1, [1, 1, 1]),
        ("1", [1, 1, 1]),
        (["pizza", 3], [0, 3, 0]),
        (["çay", "0", "ice cream"], [2, 0, 1]),
        ("none", [-1, -1, -1]),
        (["none", "pizza"], [-1, 0, -1]),
    ],
)
async def test_a_label_is_a_name_or_a_number(client: httpx.AsyncClient, label: Any, expected: list[int]) -> None:
    assert await labels(client, "drawings", label) == expected


async def test_digit_and_label_mean_the_same_where_the_classes_are_the_digits(client: httpx.AsyncClient) -> None:
    for digit in (7, "7"):
        assert await labels(client, "cgan", digit) == [7, 7, 7]
    url = "/generate?model=cgan&seed=1&"
    by_label, by_digit = [await client.get(f"{url}{name}=7") for name in ("label", "digit")]
    assert by_label.content == by_digit.content
    for name in ("content-location", "etag", "cache-control"):
        assert by_label.headers[name] == by_digit.headers[name]


async def test_a_class_that_is_called_none_is_that_class(client: httpx.AsyncClient) -> None:
    assert await labels(client, "kinds", "none") == [MANY_CLASSES.index("none")] * 3
    described = {model["name"]: model["takes"] for model in (await client.get("/models")).json()["models"]}
    assert not described["kinds"]["label"]["none"]
    assert described["drawings"]["label"]["none"]


@pytest.mark.parametrize("name", ["pizza", "ice cream", "çay", "Zebra", "zebra"])
async def test_the_canonical_url_names_the_class(client: httpx.AsyncClient, name: str) -> None:
    number = CLASSES.index(name)
    response = await client.get("/generate", params={"model": "drawings", "label": number, "format": "json"})
    location = response.headers["content-location"]
    assert f"&label={quote(name)}&" in location
    assert response.json()["url"] == location
    assert "immutable" in (await client.get(location)).headers["cache-control"]
    assert (await client.get(location)).json()["images"] == response.json()["images"]


async def test_a_cached_request_means_the_class_of_its_own_model(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        for model, expected in (("drawings", 1), ("kinds", 1), ("cgan", 1)):
            query = f"model={model}&seed=3&label=1&format=json"
            assert (await client.get(f"/generate?{query}")).json()["images"][0]["label"] == expected
        for label, expected in (("zebra", 4), ("Zebra", 3)):
            query = f"model=drawings&seed=3&label={label}&format=json"
            assert (await client.get(f"/generate?{query}")).json()["images"][0]["label"] == expected


# -- other routes ------------------------------------------------------------------------------------------------------


async def test_interpolation_ends_in_two_labels(client: httpx.AsyncClient) -> None:
    query = "model=drawings&seed=3&label=pizza&label=zebra&frames=3"
    response = await client.post(f"/interpolate?{query}&format=npz")
    found = arrays(response)
    assert found["labels"].tolist() == [0, -1, 4]
    assert "&label=pizza&label=zebra&" in response.headers["content-location"]
    for i, label in ((0, "pizza"), (2, "zebra")):
        one = arrays(await client.post(f"/generate?model=drawings&seed=3&label={label}&format=npz"))
        assert np.array_equal(found["images"][i], one["images"][0])
    assert "at most 2" in problem(await client.post(f"/interpolate?{query}&label=1"), 422)


async def test_codes_depend_on_the_label(client: httpx.AsyncClient) -> None:
    def upload() -> dict[str, Any]:
        return {"image": ("a.png", PICTURE, "image/png")}

    codes = {
        label: (await client.post(f"/encode?model=drawings&label={label}", files=upload())).json()["codes"]
        for label in ("pizza", "0", "zebra", "none")
    }
    assert codes["pizza"] == codes["0"] != codes["zebra"] != codes["none"]
    pizza = {"model": "drawings", "codes": codes["pizza"], "label": "pizza", "format": "npz"}
    decoded = arrays(await client.post("/decode", json=pizza))
    again = arrays(await client.post("/reconstruct?model=drawings&label=pizza&format=npz", files=upload()))
    assert decoded["labels"].tolist() == again["labels"].tolist() == [0]
    assert np.array_equal(decoded["images"], again["images"])


async def test_models_are_described_with_classes_and_shape(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    pictures, cgan, gan = (models[name] for name in ("pictures", "cgan", "gan"))
    assert (pictures["classes"], pictures["takes"]["label"]["one_of"]) == ([*CLASSES], [*CLASSES])
    assert "digit" not in pictures["takes"]
    assert (pictures["channels"], pictures["height"], pictures["width"]) == (3, 24, 32)
    assert (cgan["channels"], cgan["height"], cgan["width"]) == (1, 28, 28)
    assert cgan["takes"]["label"] == {"one_of": list("0123456789"), "none": False}
    assert cgan["takes"]["digit"] == {"one_of": list(range(10)), "names": list("0123456789"), "none": False}
    assert (gan["classes"], "label" in gan["takes"]) == ([], False)
    assert models["drawings"]["defaults"].keys() == {"steps", "sampler", "guidance"}
    assert {model["uploads"] for model in models.values()} == {"digit"}


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "model=pictures&label=piza",
            "pictures has no class 'piza'; its classes are: pizza, ice cream, çay, Zebra, ze",
        ),
        ("model=pictures&label=ZEBRA", "has no class 'ZEBRA'; its classes are: pizza"),
        ("model=pictures&label=5", "has no class '5'; its classes are"),
        ("model=pictures&label=-1", "has no class '-1'"),
        ("model=pictures&label=", "has no class ''"),
        ("model=pictures&label=none", "pictures always takes a label; its classes are: pizza"),
        ("model=kinds&label=kid+2", "kinds has no class 'kid 2'; the nearest are: kind 2, "),
        ("model=kinds&label=salt+and+peper", "the nearest are: salt & pepper"),
        ("model=kinds&label=qqqq", "has no class 'qqqq'; GET /models lists its 32 classes"),
        ("model=gan&label=pizza", "label: gan is not conditional"),
        ("model=gan&label=none", "label: gan is not conditional"),
        ("model=pictures&digit=3", "digit: the classes of pictures are not the digits; use `label`; its classes are"),
        ("model=kinds&digit=3", "use `label`; GET /models lists its 32 classes"),
        ("model=cgan&digit=3&label=3", "digit: means the same as `label`; give one of them"),
        ("model=cgan&label=12", "cgan has no class '12'; its classes are: 0, 1, 2"),
        ("model=cgan&label=" + "x" * 256, "label.0: String should have at most 255 characters"),
        ("model=drawings&label=pizza" + "&label=1" * 64, "label: at most 64, one per image"),
        ("label=seven", "label: the default model cgan has no class 'seven'; no other model does, see GET /models"),
        ("label=pizza", "cgan has no class 'pizza'; name one that does as `model`: drawings, pictures"),
        ("label=1&label=zebra", "has no class 'zebra'; name one that does as `model`: drawings, pictures"),
    ],
)
async def test_a_wrong_label_is_refused_with_what_to_name(client: httpx.AsyncClient, query: str, message: str) -> None:
    assert message in problem(await client.post(f"/generate?{query}"), 422, "invalid-parameter")


@pytest.mark.parametrize("label", [True, 1.5, -1, {}, [["pizza"]], [None], 10**400, ["pizza", 0.0]])
async def test_other_values_are_no_labels(client: httpx.AsyncClient, label: Any) -> None:
    body = {"model": "drawings", "label": label}
    assert "label" in problem(await client.post("/generate", json=body), 422, "invalid-parameter")


async def test_requests_without_a_model_go_to_the_default_that_takes_labels(client: httpx.AsyncClient) -> None:
    by_default = await client.get("/generate?label=7&seed=3")
    assert by_default.content == (await client.get("/generate?model=cgan&digit=7&seed=3")).content
