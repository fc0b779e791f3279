"""Loading models while the service runs: the order, requests that wait, and a bounded number of models in memory."""

import asyncio
import gc
import io
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from models import families, store
from service.app import Application, create_app
from service.engine import catalog
from service.engine.catalog import Model
from service.engine.loader import ModelLoader
from service.settings import Settings
from tests.conftest import manifest_of, small
from tests.service.conftest import asgi_client, problem

NAMES = ("cgan", "dcgan", "gan", "pca", "vae")
"""Sorted. The default models are dcgan and cgan."""


class Gate:
    """Stands before the loading of weights: each load needs a permit."""

    def __init__(self, load: Callable[..., Model]) -> None:
        self.load, self.permits = load, threading.Semaphore(0)
        self.begun: list[str] = []
        """Names in the order of their loads."""

    def __call__(self, directory: Path, *arguments: Any) -> Model:
        self.begun.append(directory.name)
        self.permits.acquire()
        return self.load(directory, *arguments)

    async def has_begun(self, *names: str) -> None:
        """Wait until the loads of exactly these names have begun, in this order."""
        deadline = time.monotonic() + 30
        while len(self.begun) < len(names) and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        assert self.begun == [*names]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(catalog.load)
    monkeypatch.setattr(catalog, "load", gate)
    return gate


@pytest.fixture
def root(weights: Path, tmp_path: Path) -> Path:
    """A directory of five models that the test may change."""
    for name in NAMES:
        shutil.copytree(weights / name, tmp_path / name)
    return tmp_path


@asynccontextmanager
async def starting(
    root: Path, gate: Gate | None = None, **settings: Any
) -> AsyncIterator[tuple[Application, httpx.AsyncClient]]:
    """An application that serves before its models are loaded, and a client of it."""
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4, **settings), serve_early=True)
    async with app.router.lifespan_context(app), asgi_client(app) as client:
        try:
            yield app, client
        finally:
            if gate is not None:
                gate.permits.release(100)


def loader_of(app: Application) -> ModelLoader:
    loader: ModelLoader = app.state.service.loader
    return loader


def loaded(app: Application) -> set[str]:
    """The names of the models in memory."""
    return {model.name for model in loader_of(app).catalog.loaded.values()}


def url(name: str) -> str:
    return f"/generate?model={name}&seed=7&n=2&format=npz"


# -- the order ---------------------------------------------------------------------------------------------------------


async def test_the_default_models_are_loaded_first_then_the_others_by_name(root: Path, gate: Gate) -> None:
    gate.permits.release(100)
    async with starting(root) as (app, _):
        await loader_of(app).started.wait()
    assert gate.begun == ["dcgan", "cgan", "gan", "pca", "vae"]


async def test_a_requested_model_is_loaded_next(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (_, client):
        waiting = [asyncio.create_task(client.get(url(name))) for name in ("vae", "pca")]
        await asyncio.sleep(0.05)
        gate.permits.release(3)
        responses = await asyncio.gather(*waiting)
        assert [response.status_code for response in responses] == [200, 200]
        await gate.has_begun("dcgan", "vae", "pca", "cgan")


async def test_a_model_in_memory_responds_while_others_are_loaded(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (app, client):
        gate.permits.release(1)
        await gate.has_begun("dcgan", "cgan")
        assert (await client.get("/generate?seed=1")).status_code == 200
        assert loaded(app) == {"dcgan"}


async def test_every_image_and_etag_is_the_same_before_and_after_other_models_are_loaded(
    root: Path, gate: Gate
) -> None:
    async with starting(root, gate) as (app, client):
        gate.permits.release(1)
        early = await client.get(url("dcgan"))
        gate.permits.release(100)
        await loader_of(app).started.wait()
        late = await client.get(url("dcgan"))
    assert early.status_code == 200
    assert (late.content, late.headers["etag"]) == (early.content, early.headers["etag"])


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_a_request_waits_for_its_model_until_its_timeout(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (_, client):
        started_at = time.monotonic()
        response = await client.get(f"{url('vae')}&timeout=0.2")
        assert problem(response, 504, "too-late") == "vae was not loaded within 0.2 s; retry later, or raise `timeout`"
        assert 0.2 <= time.monotonic() - started_at < 5


async def test_the_time_of_waiting_counts_towards_the_timeout(
    root: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []
    async with starting(root, gate) as (app, client):
        submit = app.state.service.engine.submit

        def recorded(request: Any, *arguments: Any) -> Any:
            timeouts.append(request.timeout)
            return submit(request, *arguments)

        monkeypatch.setattr(app.state.service.engine, "submit", recorded)
        waiting = asyncio.create_task(client.get(f"{url('vae')}&timeout=30"))
        await asyncio.sleep(0.3)
        gate.permits.release(100)
        assert (await waiting).status_code == 200
    assert 0 < timeouts[0] <= 29.7


async def test_invalid_parameters_are_refused_without_waiting(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (app, client):
        assert "not conditional" in problem(await client.get("/generate?model=vae&label=3"), 422)
        shape = "codes: send a list of arrays of shape [16] with finite numbers"
        assert problem(await client.post("/decode", json={"model": "vae", "codes": [[1.0]]}), 422) == shape
        assert not loaded(app)


async def test_a_request_for_weights_that_prove_broken_says_why(root: Path, gate: Gate) -> None:
    with (root / "vae" / store.TENSORS).open("ab") as file:
        file.write(b"x")
    async with starting(root, gate) as (_, client):
        waiting = asyncio.create_task(client.get(url("vae")))
        await asyncio.sleep(0.05)
        gate.permits.release(100)
        assert "vae cannot be served" in problem(await waiting, 404, "unknown-model")
        assert (await client.get(url("gan"))).status_code == 200


async def test_an_unexpected_error_while_loading_breaks_one_model_only(root: Path, gate: Gate) -> None:
    load = gate.load

    def fail(directory: Path, *arguments: Any) -> Model:
        if directory.name == "vae":
            raise MemoryError
        return load(directory, *arguments)

    gate.load = fail
    gate.permits.release(100)
    async with starting(root) as (app, client):
        await loader_of(app).started.wait()
        ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["broken"] == {"vae": "vae cannot be loaded: MemoryError()"}


async def test_a_manifest_that_describes_no_model_breaks_one_model_only(root: Path, gate: Gate) -> None:
    manifest = root / "vae" / store.MANIFEST
    manifest.write_text(manifest.read_text().replace('"family": "vae"', '"family": "vea"'))
    async with starting(root, gate) as (_, client):
        assert "does not match its manifest" in problem(await client.get(url("vae")), 404, "unknown-model")
        names = [model["name"] for model in (await client.get("/models")).json()["models"]]
        assert names == [name for name in NAMES if name != "vae"]


async def test_requests_that_wait_for_a_model_get_503_at_a_shutdown(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (app, client):
        waiting = asyncio.create_task(client.get(url("vae")))
        await gate.has_begun("dcgan")
        await asyncio.sleep(0.05)
        draining = asyncio.create_task(app.drain())
        response = await waiting
        assert "shutting down" in problem(response, 503, "unavailable")
        assert response.headers["retry-after"] == "5"
        await draining
        assert "shutting down" in problem(await client.get(url("gan")), 503)


# -- what the service says ---------------------------------------------------------------------------------------------


async def test_readiness_names_the_models_that_are_still_to_come(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (app, client):
        gate.permits.release(1)
        await gate.has_begun("dcgan", "cgan")
        response = await client.get("/readyz")
        assert response.status_code == 503
        expected = dict.fromkeys(NAMES, "loading") | {"dcgan": "ok"}
        assert response.json() == {"status": "not ready", "models": expected, "broken": {}}
        states = {model["name"]: model["state"] for model in (await client.get("/models")).json()["models"]}
        assert states == dict.fromkeys(NAMES, "loading") | {"dcgan": "loaded"}
        index = (await client.post("/v2/repository/index", json={"ready": True})).json()
        assert [model["name"] for model in index] == ["dcgan"]
        assert (await client.get("/v2/models/vae/ready")).status_code == 503
        gate.permits.release(100)
        await loader_of(app).started.wait()
        response = await client.get("/readyz")
        assert response.status_code == 200
        assert set(response.json()["models"].values()) == {"ok"}
        assert (await client.get("/v2/models/vae/ready")).json() == {"name": "vae", "ready": True}


async def test_readiness_of_one_model(root: Path, gate: Gate) -> None:
    async with starting(root, gate) as (app, client):
        gate.permits.release(1)
        await gate.has_begun("dcgan", "cgan")
        ready = await client.get("/readyz?model=dcgan")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "models": {"dcgan": "ok"}, "broken": {}}
        coming = await client.get("/readyz?model=vae")
        assert coming.status_code == 503
        assert coming.json() == {"status": "not ready", "models": {"vae": "loading"}, "broken": {}}
        assert "no model 'nope'" in problem(await client.get("/readyz?model=nope"), 404, "unknown-model")
        gate.permits.release(2)
        await gate.has_begun("dcgan", "cgan", "vae", "gan")  # the probe moved it to the front
        version = next(key for key in loader_of(app).catalog.loaded if key.startswith("vae"))
        for name in ("vae", version):
            assert (await client.get(f"/readyz?model={name}")).json()["models"] == {name: "ok"}


async def test_a_model_is_described_alike_before_and_after_it_is_loaded(weights: Path, gate: Gate) -> None:
    async with starting(weights, gate) as (app, client):
        before = (await client.get("/models")).json()
        assert [model["name"] for model in before["models"]] == families.names()
        assert {model["state"] for model in before["models"]} == {"loading"}
        gate.permits.release(100)
        await loader_of(app).started.wait()
        after = (await client.get("/models")).json()
        assert {model.pop("state") for model in after["models"]} == {"loaded"}
        for model in before["models"]:
            del model["state"]
        assert after == before


# -- a bounded number of models in memory ------------------------------------------------------------------------------


async def test_models_beyond_the_limit_are_loaded_on_demand(root: Path) -> None:
    async with starting(root, max_loaded_models=2) as (app, client):
        await loader_of(app).started.wait()
        assert loaded(app) == {"dcgan", "cgan"}
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["models"] == dict.fromkeys(NAMES, "on demand") | {"dcgan": "ok", "cgan": "ok"}
        one = await client.get("/readyz?model=vae")
        assert (one.status_code, one.json()["models"]) == (200, {"vae": "on demand"})
        assert (await client.get("/v2/models/vae/ready")).json()["ready"]
        assert loaded(app) == {"dcgan", "cgan"}, "probes load nothing"
        assert (await client.get(url("cgan"))).status_code == 200
        assert (await client.get(url("vae"))).status_code == 200
        assert loaded(app) == {"cgan", "vae"}, "dcgan was not used for the longest time"
        assert (await client.get("/generate?seed=1")).status_code == 200
        assert loaded(app) == {"dcgan", "vae"}


async def test_probes_do_not_keep_a_model_in_memory(root: Path) -> None:
    async with starting(root, max_loaded_models=2) as (app, client):
        await loader_of(app).started.wait()
        await client.get(url("cgan"))
        await client.get(url("dcgan"))
        await client.get("/readyz")
        await client.get(url("vae"))
        assert loaded(app) == {"dcgan", "vae"}


async def test_a_model_that_is_loaded_again_gives_the_same_bytes(root: Path) -> None:
    async with starting(root) as (app, client):
        await loader_of(app).started.wait()
        expected = {name: await client.get(url(name)) for name in NAMES}
    async with starting(root, max_loaded_models=1) as (app, client):
        peak = 0
        for name in [*NAMES, *reversed(NAMES)]:
            response = await client.get(url(name))
            assert response.content == expected[name].content
            assert response.headers["etag"] == expected[name].headers["etag"]
            again = await client.get(url(name), headers={"If-None-Match": response.headers["etag"]})
            assert again.status_code == 304
            peak = max(peak, len(app.state.service.engine.runners))
        assert peak == 1


async def test_the_limit_holds_under_concurrent_requests_for_all_models(root: Path) -> None:
    async with starting(root, max_loaded_models=2) as (app, client):
        engine, sizes = app.state.service.engine, set()
        add = engine.add

        def recorded(*arguments: Any) -> None:
            add(*arguments)
            sizes.add(len(engine.runners))

        engine.add = recorded
        names = [name for _ in range(6) for name in NAMES]
        responses = await asyncio.gather(*(client.get(f"/generate?model={name}&n=4") for name in names))
        assert {response.status_code for response in responses} == {200}
        assert max(sizes) == 2
        assert not loader_of(app).users


async def test_a_model_is_unloaded_after_its_last_request(root: Path, weights: Path) -> None:
    shutil.copytree(weights / "ddpm", root / "ddpm")
    async with starting(root, max_loaded_models=1) as (app, client):
        long = asyncio.create_task(client.get("/generate?model=ddpm&steps=20&n=8&format=npz"))
        while not app.state.service.engine.outstanding:
            await asyncio.sleep(0.001)
        other = asyncio.create_task(client.get(url("gan")))
        await asyncio.wait((long, other), return_when=asyncio.FIRST_COMPLETED)
        assert long.done()
        assert [(await response).status_code for response in (long, other)] == [200, 200]


async def test_a_request_of_two_stages_keeps_its_model(root: Path, uploads: list[tuple[str, Any]]) -> None:
    async with starting(root, max_loaded_models=1) as (_, client):
        calls = []
        for _ in range(3):
            calls.append(client.post("/interpolate?model=vae&frames=4&format=npz", files=uploads))
            calls.append(client.get(url("gan")))
        responses = await asyncio.wait_for(asyncio.gather(*calls), 60)
        assert [response.status_code for response in responses] == [200] * 6


@pytest.fixture
def uploads() -> list[tuple[str, Any]]:
    """Two pictures of a stroke."""
    files = []
    for slant in (0, 8):
        image, buffer = Image.new("L", (28, 28)), io.BytesIO()
        ImageDraw.Draw(image).line((10, 4, 10 + slant, 24), fill=255, width=3)
        image.save(buffer, "png")
        files.append(("image", ("stroke.png", buffer.getvalue(), "image/png")))
    return files


async def test_an_unloaded_model_is_freed(root: Path) -> None:
    async with starting(root, max_loaded_models=1) as (app, client):
        await client.get(url("vae"))
        (model,) = loader_of(app).catalog.loaded.values()
        family = weakref.ref(model.family)
        del model
        gc.disable()
        try:
            await client.get(url("gan"))
            await asyncio.sleep(0.1)
            assert family() is None, "without the garbage collector"
        finally:
            gc.enable()


async def test_a_reload_replaces_a_model_within_the_limit(root: Path) -> None:
    async with starting(root, max_loaded_models=1) as (app, client):
        old = await client.get(url("cgan"))
        digests = {}
        for name in ("cgan", "vae"):  # one in memory, one not
            family = small(name).for_sampling()
            for parameter in family.parameters():
                parameter.mul_(1.01)
            digests[name] = store.save(root / name, family, manifest_of(family), b"").digest
        await app.reload()
        assert loaded(app) == {"cgan"}
        for name, digest in digests.items():
            assert (await client.get(url(name))).headers["x-model-digest"] == digest
        gone = problem(await client.get(old.headers["content-location"]), 404)
        assert gone.startswith(f"cgan has no version '{old.headers['x-model-digest'][:12]}'")


async def test_a_reload_during_the_start_waits_for_its_new_weights(root: Path, gate: Gate, weights: Path) -> None:
    async with starting(root, gate) as (app, client):
        shutil.copytree(weights / "ddpm", root / "ddpm")
        reload = asyncio.create_task(app.reload())
        await gate.has_begun("dcgan")
        gate.permits.release(100)
        await reload
        assert "ddpm" in loaded(app)
        assert (await client.get("/readyz")).status_code == 200
