"""Routes about the service: models, health, and the API reference."""

import dataclasses
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI

from models import families, store
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import asgi_client, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def client_of(weights: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that serves the weights in a directory."""
    app = create_app(Settings(weights=weights, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        yield client


# -- models ------------------------------------------------------------------------------------------------------------


async def test_models_are_described_with_their_parameters(client: httpx.AsyncClient) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    assert sorted(models) == families.names()
    for name, model in models.items():
        family = families.get(name)
        assert model["formula"] == family.about.formula
        assert model["paper"] == family.about.paper
        assert model["encodes"] == family.encodes
        assert model["dataset"] == {"name": "none"}
        assert ("digit" in model["takes"]) == family.conditional
        assert ("steps" in model["takes"]) == (family.steps.maximum > 1)
        assert model["takes"].get(family.sampler_parameter, {}).get("one_of", []) == list(family.samplers)
    guidance = models["ddpm"]["takes"]["guidance"]
    help_text = guidance.pop("trades")
    assert guidance == {"minimum": 0.0, "maximum": 10.0, "default": 1.6}
    assert "precision" in help_text
    assert "recall" in help_text


async def test_the_default_models_are_named(client: httpx.AsyncClient) -> None:
    defaults = (await client.get("/models")).json()["defaults"]
    assert defaults == {"unconditional": "dcgan", "conditional": "cgan"}


async def test_every_described_parameter_is_accepted(client: httpx.AsyncClient) -> None:
    for model in (await client.get("/models")).json()["models"]:
        takes = model["takes"]
        parameters = {name: limits["one_of"][-1] for name, limits in takes.items() if "one_of" in limits}
        parameters |= {name: limits["minimum"] for name, limits in takes.items() if "minimum" in limits}
        for alias in ("label", "digit"):
            query = {name: value for name, value in parameters.items() if name != alias}
            response = await client.post("/generate", params={"model": model["name"], **query})
            assert response.status_code == 200, response.text


async def test_one_model_is_described_with_its_manifest(client: httpx.AsyncClient, weights: Path) -> None:
    body = (await client.get("/models/cgan")).json()
    manifest = dataclasses.asdict(store.read_manifest(weights / "cgan"))
    assert body["manifest"] == {**manifest, "data_shape": [1, 28, 28], "classes": list("0123456789")}
    assert body["digest"] == manifest["digest"]


# -- health ------------------------------------------------------------------------------------------------------------


async def test_readiness_runs_a_step_of_every_model(client: httpx.AsyncClient, app: FastAPI) -> None:
    assert (await client.get("/livez")).status_code == 200
    before = app.state.service.engine.ended["delivered"]
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "models": dict.fromkeys(families.names(), "ok"), "broken": {}}
    assert app.state.service.engine.ended["delivered"] == before + len(families.names())


async def test_a_model_whose_step_fails_is_not_ready(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(app.state.service.catalog.models["vae"].runner, "advance", fail)
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert "device lost" in response.json()["models"]["vae"]
    assert response.json()["models"]["gan"] == "ok"


async def test_damaged_weights_are_reported_and_the_others_served(weights: Path, tmp_path: Path) -> None:
    for name in ("gan", "vae"):
        shutil.copytree(weights / name, tmp_path / name)
    with (tmp_path / "vae" / store.TENSORS).open("ab") as file:
        file.write(b"x")
    async with client_of(tmp_path) as client:
        response = await client.get("/readyz")
        assert response.status_code == 200
        assert "SHA-256" in response.json()["broken"]["vae"]
        assert "vae cannot be served" in problem(await client.post("/generate?model=vae"), 404, "unknown-model")
        assert (await client.post("/generate?model=gan")).status_code == 200


async def test_weights_that_generate_nan_are_reported_and_the_others_served(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "gan", tmp_path / "gan")
    family, manifest = store.load(weights / "vae")
    for parameter in family.decoder.parameters():
        parameter.fill_(torch.nan)
    store.save(tmp_path / "vae", family, manifest, b"")
    async with client_of(tmp_path) as client:
        assert (await client.get("/readyz")).json()["broken"].keys() == {"vae"}
        assert (await client.post("/generate?model=gan")).status_code == 200


async def test_a_service_without_weights_is_not_ready_and_says_why(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert "available models: none" in problem(await client.post("/generate?model=gan"), 404)
        assert "name one of: none" in problem(await client.post("/generate"), 422)
        empty = {"models": [], "defaults": {"unconditional": None, "conditional": None}}
        assert (await client.get("/models")).json() == empty


# -- API reference -----------------------------------------------------------------------------------------------------


async def test_the_api_reference_loads_nothing_from_other_hosts(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"docs/assets/{asset}" in page
        assert (await client.get(f"/docs/assets/{asset}")).status_code == 200


async def test_the_openapi_document_has_every_path_and_parameter(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    images = {"/decode", "/encode", "/generate", "/inpaint", "/interpolate", "/nearest", "/reconstruct", "/vary"}
    native = {path for path in paths if not path.startswith(("/v1", "/v2"))}
    films = {"/models/{name}/film", "/models/{name}/film.webp"}
    assert native == images | films | {"/livez", "/metrics", "/models", "/models/{name}", "/readyz"}
    assert {"/v1/images/generations", "/v2/models/{name}/infer"} <= set(paths)
    parameters = {parameter["name"]: parameter for parameter in paths["/generate"]["post"]["parameters"]}
    assert parameters.keys() == {
        "model", "label", "digit", "n", "seed", "first", "format", "steps", "sampler", "prior", "guidance", "priority",
        "timeout", "previews", "guesses",
    }  # fmt: skip
    assert all(parameter["description"] for parameter in parameters.values())


async def test_the_openapi_document_has_bodies_and_problems(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in str(document), "the service never sends FastAPI's own errors"
    paths = document["paths"]
    for path, media_types in {"/generate": 1, "/interpolate": 2, "/encode": 2, "/decode": 1, "/inpaint": 2}.items():
        operation = paths[path]["post"]
        assert len(operation["requestBody"]["content"]) == media_types
        assert {"401", "404", "406", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()

    native = await client.post("/generate?model=nope")
    assert {"404", "503"} <= paths["/readyz"]["get"]["responses"].keys()
    assert {"404", "503"} <= paths["/v2/models/{name}/ready"]["get"]["responses"].keys()
    documented = paths["/generate"]["post"]["responses"]["404"]["content"]
    assert list(documented) == [native.headers["content-type"]]
    assert set(document["components"]["schemas"]["Problem"]["required"]) <= native.json().keys()

    openai = await client.post("/v1/images/generations", json={"prompt": "a", "n": 0})
    responses = paths["/v1/images/generations"]["post"]["responses"]
    assert "422" not in responses
    assert list(responses[str(openai.status_code)]["content"]) == [openai.headers["content-type"]]


async def test_the_openapi_document_uses_the_dialect_of_its_version(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text
    assert '"openapi":"3.0.' in text
    for newer in ('"type":"null"', '"const":', '"$defs":', '"exclusiveMinimum":0'):
        assert newer not in text
