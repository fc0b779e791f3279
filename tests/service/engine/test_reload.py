"""New weights while the service runs: nobody notices, and both versions can be had."""

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


def renewed(root: Path, name: str, seed: int) -> str:
    """Put other weights called `name` under `root`, and return their digest."""
    family = small(name).for_sampling()
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in family.parameters():
            tensor.add_(0.01 * torch.randn_like(tensor))
    return store.save(root / name, family, manifest_of(family), b"").digest


@pytest.fixture
def root(weights: Path, tmp_path: Path) -> Path:
    """A root of a test's own, with three models."""
    for name in ("cgan", "ddpm", "vae"):
        shutil.copytree(weights / name, tmp_path / name)
    return tmp_path


def asked(app: Application) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge")


async def test_new_weights_come_beside_the_old_which_can_still_be_asked_for(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asked(app) as client:
        first = await client.get("/generate?model=cgan&seed=1&digit=7")
        old = first.headers["x-model-digest"]
        long = asyncio.create_task(client.get("/generate?model=ddpm&seed=1&steps=200&n=4&digit=3"))
        while not app.state.service.engine.outstanding:
            await asyncio.sleep(0.001)
        new, ddpm = renewed(root, "cgan", 1), renewed(root, "ddpm", 1)
        await app.reload()
        assert not long.done(), "it goes on with the weights that it began with"
        second = await client.get("/generate?model=cgan&seed=1&digit=7")
        assert second.headers["x-model-digest"] == new
        assert second.content != first.content
        assert second.headers["etag"] != first.headers["etag"]
        for answer in (first, second):
            again = await client.get(answer.headers["content-location"])
            assert again.content == answer.content
        begun = (await long).headers["x-model-digest"]
        assert begun != ddpm
        assert (await long).content == (await client.get((await long).headers["content-location"])).content
        newest = renewed(root, "cgan", 2)
        await app.reload()
        gone = await client.get(first.headers["content-location"])
        assert gone.status_code == 404
        assert newest[:12] in gone.json()["detail"]
        shown = {model["name"]: model["digest"] for model in (await client.get("/models")).json()["models"]}
        assert shown["cgan"] == newest
        assert old not in (await client.get("/metrics")).text


async def test_to_put_the_old_weights_back_is_to_go_back(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asked(app) as client:
        before = (await client.get("/generate?model=vae&seed=1")).content
        shutil.copytree(root / "vae", root / ".kept")
        renewed(root, "vae", 1)
        await app.reload()
        runner = app.state.service.catalog.previous["vae"].runner
        shutil.rmtree(root / "vae")
        (root / ".kept").rename(root / "vae")
        await app.reload()
        assert (await client.get("/generate?model=vae&seed=1")).content == before
        assert app.state.service.catalog.models["vae"].runner is runner, "it was still warm"


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
async def test_what_is_damaged_where_it_lies_is_named_before_a_restart_finds_it(root: Path, damage: str) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asked(app) as client:
        before = await client.get("/generate?model=cgan&seed=1&digit=7")
        tensors = root / "cgan" / store.TENSORS
        data = tensors.read_bytes()
        if damage == "cut":
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


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest", "nonsense"])
async def test_what_is_broken_changes_nothing_and_is_named(root: Path, damage: str) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asked(app) as client:
        before = await client.get("/generate?model=cgan&seed=1&digit=7")
        renewed(root, "cgan", 1)
        tensors = root / "cgan" / store.TENSORS
        data = bytearray(tensors.read_bytes())
        if damage == "cut":
            tensors.write_bytes(data[:-9])
        elif damage == "flipped":
            data[-5] ^= 1
            tensors.write_bytes(data)
        elif damage == "no manifest":
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


async def test_weights_that_are_replaced_leave_no_memory_behind(root: Path) -> None:
    app = create_app(Settings(weights=root, device="cpu", max_batch_size=4))
    async with app.router.lifespan_context(app), asked(app) as client:
        gone = [weakref.ref(model.family) for model in app.state.service.catalog.models.values()]
        for seed in range(2):
            for name in ("cgan", "ddpm", "vae"):
                renewed(root, name, seed)
                assert (await client.get(f"/generate?model={name}&seed=1")).status_code == 200
            await app.reload()
        gc.disable()
        try:
            await asyncio.sleep(0.1)
            assert [one() for one in gone] == [None] * 3, "and nothing that the collector has to find"
        finally:
            gc.enable()
        assert len(app.state.service.engine.runners) == 6


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(root, workers=2, weights_poll_interval=0.2) as running:
        yield running


def digests(server: Server, seconds: float) -> tuple[set[str], set[int]]:
    """What many callers see for a while."""
    end = time.monotonic() + seconds
    seen, codes = set[str](), set[int]()

    def ask(i: int) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while time.monotonic() < end:
                answer = client.post("/generate?model=cgan" if i % 4 else "/generate?model=ddpm&steps=10")
                codes.add(answer.status_code)
                if i % 4:
                    seen.add(answer.headers["x-model-digest"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    return seen, codes


def test_under_load_nobody_notices_and_a_signal_or_a_look_is_enough(server: Server, root: Path) -> None:
    first = httpx.post(f"{server.url}/generate?model=cgan", timeout=30).headers["x-model-digest"]
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(digests, server, 4.0)
        time.sleep(0.5)
        second = renewed(root, "cgan", 1)  # it is looked for
        time.sleep(1.5)
        third = renewed(root, "cgan", 2)
        os.kill(server.process.pid, signal.SIGHUP)
        seen, codes = load.result()
    assert codes == {200}
    assert {first, second, third} == seen
