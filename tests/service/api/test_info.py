"""What the service says of itself."""

import dataclasses
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI

from models import families, store
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_models_say_what_they_take(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    assert sorted(models) == families.names()
    for name, model in models.items():
        family = families.get(name)
        assert model["formula"] == family.about.formula
        assert model["paper"] == family.about.paper
        assert model["encodes"] == family.encodes
        assert ("digit" in model["takes"]) == family.conditional
        assert ("steps" in model["takes"]) == (family.steps.maximum > 1)
        assert model["takes"].get(family.sampler_parameter, {}).get("one_of", []) == list(family.samplers)
    guidance = models["ddpm"]["takes"]["guidance"]
    trades = guidance.pop("trades")
    assert guidance == {"minimum": 0.0, "maximum": 10.0, "default": 1.6}
    assert "precision" in trades
    assert "recall" in trades


async def test_models_say_which_draw_where_none_is_named(client: httpx.AsyncClient) -> None:
    defaults = (await client.get("/models")).json()["defaults"]
    assert defaults == {"unconditional": "dcgan", "conditional": "cgan"}


async def test_what_a_model_says_it_takes_it_takes(client: httpx.AsyncClient) -> None:
    for model in (await client.get("/models")).json()["models"]:
        takes = model["takes"]
        asked = {name: limits["one_of"][-1] for name, limits in takes.items() if "one_of" in limits}
        asked |= {name: limits["minimum"] for name, limits in takes.items() if "minimum" in limits}
        answer = await client.post("/generate", params={"model": model["name"], **asked})
        assert answer.status_code == 200, answer.text


async def test_one_model_comes_with_its_manifest(client: httpx.AsyncClient, weights: Path) -> None:
    body = (await client.get("/models/cgan")).json()
    manifest = dataclasses.asdict(store.read_manifest(weights / "cgan"))
    assert body["manifest"] == {**manifest, "data_shape": [1, 28, 28], "classes": list("0123456789")}
    assert body["digest"] == manifest["digest"]


async def test_live_and_ready(client: httpx.AsyncClient, app: FastAPI) -> None:
    assert (await client.get("/livez")).status_code == 200
    before = app.state.service.engine.ended["delivered"]
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "models": dict.fromkeys(families.names(), "ok"), "broken": {}}
    assert app.state.service.engine.ended["delivered"] == before + len(families.names())


async def test_a_model_that_cannot_draw_is_not_ready(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_):
        raise RuntimeError("device lost")

    monkeypatch.setattr(app.state.service.engine.catalog.models["vae"].runner, "advance", broken)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "device lost" in answer.json()["models"]["vae"]
    assert answer.json()["models"]["gan"] == "ok"


async def test_broken_weights_are_named_and_the_others_served(weights: Path, tmp_path: Path) -> None:
    for name in ("gan", "vae"):
        shutil.copytree(weights / name, tmp_path / name)
    with (tmp_path / "vae" / store.TENSORS).open("ab") as file:
        file.write(b"x")
    app = create_app(Settings(weights=tmp_path, device="cpu", max_batch_size=4))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client,
    ):
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert "SHA-256" in answer.json()["broken"]["vae"]
        assert "cannot be served" in problem(await client.post("/generate?model=vae"), 404)
        assert (await client.post("/generate?model=gan")).status_code == 200


async def test_weights_that_draw_nonsense_are_named_and_the_others_served(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "gan", tmp_path / "gan")
    family, manifest = store.load(weights / "vae")
    for parameter in family.decoder.parameters():
        parameter.fill_(torch.nan)
    store.save(tmp_path / "vae", family, manifest, b"")
    app = create_app(Settings(weights=tmp_path, device="cpu", max_batch_size=4))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client,
    ):
        assert "cannot generate samples" in (await client.get("/readyz")).json()["broken"]["vae"]
        assert (await client.post("/generate?model=gan")).status_code == 200


async def test_without_any_weights_nothing_is_ready_and_everything_says_why(tmp_path: Path) -> None:
    app = create_app(Settings(weights=tmp_path, device="cpu"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client,
    ):
        assert (await client.get("/readyz")).status_code == 503
        assert "there are: none" in problem(await client.post("/generate?model=gan"), 404)
        nothing = {"models": [], "defaults": {"unconditional": None, "conditional": None}}
        assert (await client.get("/models")).json() == nothing
        assert "name one; there are: none" in problem(await client.post("/generate"), 422)


async def test_the_docs_need_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"docs/assets/{asset}" in page
        assert (await client.get(f"/docs/assets/{asset}")).status_code == 200


async def test_the_docs_know_every_path_and_parameter(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    drawing = ["/decode", "/encode", "/generate", "/interpolate", "/reconstruct"]
    own = {path for path in paths if not path.startswith(("/v1", "/v2"))}
    assert sorted(own) == sorted([*drawing, "/livez", "/metrics", "/models", "/models/{name}", "/readyz"])
    assert {"/v1/images/generations", "/v2/models/{name}/infer"} <= set(paths)
    documented = {parameter["name"]: parameter for parameter in paths["/generate"]["post"]["parameters"]}
    which = ["model", "digit", "n", "seed", "first", "format"]
    how = ["steps", "sampler", "prior", "guidance", "priority", "timeout", "previews"]
    assert sorted(documented) == sorted([*which, *how])
    assert all(parameter["description"] for parameter in documented.values())


async def test_the_docs_know_bodies_and_every_kind_of_error(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in str(described), "which is nothing that is ever answered"
    paths = described["paths"]
    for path, kinds in {"/generate": 1, "/interpolate": 2, "/encode": 2, "/decode": 1}.items():
        assert len(paths[path]["post"]["requestBody"]["content"]) == kinds
        assert {"401", "404", "406", "413", "415", "422", "429", "503", "504"} <= paths[path]["post"][
            "responses"
        ].keys()
    told = await client.post("/generate?model=nope")
    said = paths["/generate"]["post"]["responses"]["404"]["content"]
    assert list(said) == [told.headers["content-type"]]
    assert set(described["components"]["schemas"]["Problem"]["required"]) <= told.json().keys()
    foreign = await client.post("/v1/images/generations", json={"prompt": "a", "n": 0})
    responses = paths["/v1/images/generations"]["post"]["responses"]
    assert "422" not in responses
    assert list(responses[str(foreign.status_code)]["content"]) == [foreign.headers["content-type"]]


async def test_the_docs_are_in_the_words_of_their_version(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text
    assert '"openapi":"3.0.' in text
    for newer in ('"type":"null"', '"const":', '"$defs":', '"exclusiveMinimum":0'):
        assert newer not in text
