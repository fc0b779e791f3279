"""Reloading weights while the service runs: no request fails, and both versions can be requested."""

import asyncio
import gc
import os
import shutil
import signal
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client import generate_latest

from harness.scraping import metric_value, parse_metrics
from harness.server import Server
from models import families, store
from service.app import Application, create_app
from service.settings import Settings
from tests.conftest import manifest_of, small
from tests.serving import serving


def replace_weights(root: Path, name: str, seed: int) -> str:
    """Replace the weights `name` under `root` by others, and return their digest."""
    family = small(name).for_sampling()
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in family.parameters():
            tensor.add_(0.01 * torch.randn_like(tensor))
    return store.save(root / name, family, manifest_of(family), b"").digest


@pytest.fixture
def root(weights: Path, tmp_path: Path) -> Path:
    """A copy of three models that the test may change."""
    for name in ("cgan", "ddpm", "vae"):
        shutil.copytree(weights / name, tmp_path / name)
    return tmp_path


def make_client(app: Application) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge")


async def test_after_a_reload_both_versions_can_be_requested(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), make_client(app) as client:
        first = await client.get("/generate?model=cgan&seed=1&digit=7")
        old = first.headers["x-model-digest"]
        long = asyncio.create_task(client.get("/generate?model=ddpm&seed=1&steps=80&n=2&digit=3"))
        while not app.state.service.engine.outstanding:
            await asyncio.sleep(0.001)
        new, new_ddpm = replace_weights(root, "cgan", 1), replace_weights(root, "ddpm", 1)
        await app.reload()
        assert not long.done()
        second = await client.get("/generate?model=cgan&seed=1&digit=7")
        assert second.headers["x-model-digest"] == new
        assert second.content != first.content
        assert second.headers["etag"] != first.headers["etag"]
        for response in (first, second):
            again = await client.get(response.headers["content-location"])
            assert again.content == response.content
        finished = await long
        assert finished.headers["x-model-digest"] != new_ddpm, "it continues with the weights that it started with"
        assert finished.content == (await client.get(finished.headers["content-location"])).content
        newest = replace_weights(root, "cgan", 2)
        await app.reload()
        unloaded = await client.get(first.headers["content-location"])
        assert unloaded.status_code == 404
        assert newest[:12] in unloaded.json()["detail"]
        digests = {model["name"]: model["digest"] for model in (await client.get("/models")).json()["models"]}
        assert digests["cgan"] == newest
        assert old not in (await client.get("/metrics")).text


async def test_restoring_the_old_weights_rolls_back(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), make_client(app) as client:
        before = (await client.get("/generate?model=vae&seed=1")).content
        shutil.copytree(root / "vae", root / ".backup")
        replace_weights(root, "vae", 1)
        await app.reload()
        runner = app.state.service.catalog.previous["vae"].runner
        shutil.rmtree(root / "vae")
        (root / ".backup").rename(root / "vae")
        await app.reload()
        assert (await client.get("/generate?model=vae&seed=1")).content == before
        assert app.state.service.catalog.models["vae"].runner is runner, "the warm runner is reused"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
async def test_a_reload_reports_damage_to_loaded_weights(root: Path, damage: str) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), make_client(app) as client:
        before = await client.get("/generate?model=cgan&seed=1&digit=7")
        tensors = root / "cgan" / store.TENSORS
        data = tensors.read_bytes()
        if damage == "truncated":
            tensors.write_bytes(data[:-9])
        elif damage == "flipped":
            tensors.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        else:
            tensors.unlink()
        await app.reload()
        assert (await client.get("/generate?model=cgan&seed=1&digit=7")).content == before.content
        assert list((await client.get("/readyz")).json()["broken"]) == ["cgan"]
        tensors.write_bytes(data)
        await app.reload()
        assert not (await client.get("/readyz")).json()["broken"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "invalid manifest", "nan"])
async def test_broken_new_weights_are_reported_and_the_old_ones_served(root: Path, damage: str) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), make_client(app) as client:
        before = await client.get("/generate?model=cgan&seed=1&digit=7")
        replace_weights(root, "cgan", 1)
        tensors = root / "cgan" / store.TENSORS
        data = bytearray(tensors.read_bytes())
        if damage == "truncated":
            tensors.write_bytes(data[:-9])
        elif damage == "flipped":
            data[-5] ^= 1
            tensors.write_bytes(data)
        elif damage == "invalid manifest":
            (root / "cgan" / store.MANIFEST).write_text("{")
        else:
            family = families.get("cgan")(small("cgan").config).for_sampling()
            with torch.no_grad():
                for tensor in family.parameters():
                    tensor.fill_(float("nan"))
            store.save(root / "cgan", family, manifest_of(family), b"")
        await app.reload()
        after = await client.get("/generate?model=cgan&seed=1&digit=7")
        assert after.content == before.content
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert "cgan" in ready.json()["broken"]
        page = parse_metrics(generate_latest(app.metrics.registry).decode())
        assert metric_value(page, "weights_reloads_total", outcome="broken") == 1


async def test_replaced_weights_are_freed(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), make_client(app) as client:
        replaced = [weakref.ref(model.family) for model in app.state.service.catalog.models.values()]
        for seed in range(2):
            for name in ("cgan", "ddpm", "vae"):
                replace_weights(root, name, seed)
                assert (await client.get(f"/generate?model={name}&seed=1")).status_code == 200
            await app.reload()
        gc.disable()
        try:
            await asyncio.sleep(0.1)
            assert [reference() for reference in replaced] == [None] * 3, "without the garbage collector"
        finally:
            gc.enable()
        assert len(app.state.service.engine.runners) == 6


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(root, workers=2, weights_poll_interval=0.2) as running:
        yield running


def run_load(server: Server, seconds: float) -> tuple[set[str], set[int]]:
    """The digests and the status codes that 16 clients receive."""
    end = time.monotonic() + seconds
    digests, statuses = set[str](), set[int]()

    def run_client(i: int) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while time.monotonic() < end:
                response = client.post("/generate?model=cgan" if i % 4 else "/generate?model=ddpm&steps=10")
                statuses.add(response.status_code)
                if i % 4:
                    digests.add(response.headers["x-model-digest"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(run_client, range(16)))
    return digests, statuses


@pytest.mark.slow
def test_reloads_by_polling_and_by_signal_fail_no_request_under_load(server: Server, root: Path) -> None:
    first = httpx.post(f"{server.url}/generate?model=cgan", timeout=30).headers["x-model-digest"]
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(run_load, server, 4.0)
        time.sleep(0.5)
        second = replace_weights(root, "cgan", 1)  # found by polling
        time.sleep(1.5)
        third = replace_weights(root, "cgan", 2)
        os.kill(server.process.pid, signal.SIGHUP)
        digests, statuses = load.result()
    assert statuses == {200}
    assert digests == {first, second, third}
