"""An engine in another process: the same responses, and nothing is lost when it dies.

The two sides are in one process here, connected by the sockets that processes would have. `test_engine_process.py`
starts processes.
"""

import asyncio
import gc
import io
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from harness.scraping import metric_value, parse_metrics
from models import families
from service.app import TELEMETRY_FLUSH_SECONDS, Application
from service.engine.host import Hosted
from service.engine.remote import RemoteEngine, Sent
from service.engine.request import Request, Sample, StartState, Ticket
from service.settings import Settings
from tests.service.conftest import asgi_client, problem
from tests.service.engine.test_reload import replace_weights
from tests.service.remote import EngineSide, engine_side, remote_app
from tests.service.server.test_direct import CASES, comparable, exchange, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def side(settings: Settings) -> AsyncIterator[EngineSide]:
    async with engine_side(settings) as side:
        yield side


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def remote(settings: Settings, side: EngineSide) -> AsyncIterator[Application]:
    """An application whose engine is behind a socket."""
    async with remote_app(settings, side) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(app: Application, remote: Application) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of the application with an engine of its own, and of the other one, over connections."""
    async with (
        listening(app) as here,
        listening(remote) as there,
        httpx.AsyncClient(base_url=here, timeout=60) as one,
        httpx.AsyncClient(base_url=there, timeout=60) as other,
    ):
        yield one, other


async def until(condition: Any) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def upload(size: int = 28) -> bytes:
    """A picture of a stroke."""
    picture, buffer = np.zeros((size, size), np.uint8), io.BytesIO()
    picture[4:24, 12:16] = 255
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


# -- the same responses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
async def test_responses_are_those_of_an_engine_in_the_same_process(
    app: Application, remote: Application, clients: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for one in (app, remote):
        monkeypatch.setattr(one.state.service, "new_seed", lambda: 4711)
        monkeypatch.setattr(one, "settings", one.settings.model_copy(update={"max_body_bytes": 3000}))
    status, request = CASES[name]
    for client in clients:  # measure the model's rate
        await client.post("/generate?model=gan")
    here, there = [await exchange(client, request) for client in clients]
    assert here.startswith(b"HTTP/1.1 %d " % status)
    if b"too-late" in here:
        here, there = (
            re.sub(rb"about [\d.]+ s|\"seconds\": ?[\d.e-]+|content-length: \d+", b"", text) for text in (here, there)
        )
    assert comparable(here) == comparable(there)


FORM = {"image": ("one.png", upload())}
TWO = [("image", ("one.png", upload())), ("image", ("two.png", upload(30)))]
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "zip stream": ("GET", "/generate?model=ddpm&steps=3&n=20&seed=3&format=zip", {}),
    "npz stream": ("GET", "/generate?model=cgan&digit=3&n=20&seed=3&format=npz", {}),
    "sampled labels": ("GET", "/generate?model=cgan&n=12&seed=9&format=json", {}),
    "events": ("GET", "/generate?model=ddpm&steps=4&n=2&seed=3&format=events&previews=true&guesses=true", {}),
    "interpolation": ("GET", "/interpolate?model=vae&seed=3&seed=4&frames=5", {}),
    "interpolation of uploads": ("POST", "/interpolate?model=vae&frames=4&seed=5", {"files": TWO}),
    "encode": ("POST", "/encode?model=vae", {"files": FORM}),
    "decode": ("POST", "/decode", {"json": {"model": "pca", "codes": [[0.5] * 8, [0.1] * 8]}}),
    "reconstruct": ("POST", "/reconstruct?model=ddpm", {"files": FORM}),
    "vary": ("POST", "/vary?model=ddpm&n=2&seed=1&steps=5&strength=0.6", {"files": FORM}),
    "inpaint": ("POST", "/inpaint?model=ddpm&n=2&seed=1&steps=5", {"files": {**FORM, "mask": ("m.png", upload())}}),
    "OpenAI": ("POST", "/v1/images/generations", {"json": {"model": "cgan", "prompt": "7", "seed": 3, "n": 2}}),
    "models": ("GET", "/models", {}),
    "model": ("GET", "/models/ddpm", {}),
    "film": ("GET", "/films/ddpm", {}),
    "ready": ("GET", "/readyz", {}),
    "ready for one": ("GET", "/readyz?model=gan", {}),
    "page": ("GET", "/", {}),
    "no such model": ("GET", "/models/nope", {}),
    "no such version": ("GET", "/generate?model=gan@0123456789ab", {}),
    "no index": ("POST", "/nearest?model=gan", {"files": FORM}),
    "a deadline": ("GET", "/generate?model=ddpm&steps=900&n=60&timeout=0.05", {}),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_other_responses_are_those_of_an_engine_in_the_same_process(clients: Any, name: str) -> None:
    method, url, options = REQUESTS[name]
    if name == "a deadline":  # measure the model's rate
        for client in clients:
            await client.post("/generate?model=ddpm&steps=20")
    here, there = [await client.request(method, url, **options) for client in clients]
    assert here.status_code == there.status_code
    differing = {"x-request-id", "server-timing", "date"}
    if name == "a deadline":
        assert problem(here, 504)[:17] == problem(there, 504)[:17] == "this takes about "
        return
    assert [pair for pair in here.headers.items() if pair[0] not in differing] == [
        pair for pair in there.headers.items() if pair[0] not in differing
    ]
    assert lasting(here) == lasting(there)


def lasting(response: httpx.Response) -> Any:
    """The content without times, and of events those that a slow reader gets as well."""
    content = re.sub(rb'"(seconds|created|created_at)": ?[\d.]+', b"", response.content)
    if "event-stream" not in response.headers["content-type"]:
        return content
    return [event for event in content.split(b"\n\n") if not event.startswith((b"event: preview", b"event: progress"))]


async def test_events_report_progress_and_previews(clients: Any) -> None:
    url = "/generate?model=ddpm&steps=30&n=2&seed=3&format=events&previews=true&guesses=true"
    for client in clients:
        content = (await client.get(url)).text
        assert '"ahead": 0, "gone": 0, "links": 60' in content
        assert content.count("event: preview") > 10
        assert content.count("event: image") == 2


async def test_every_family_has_the_same_etags_and_bytes(clients: Any) -> None:
    for family in families.names():
        here, there = [await client.get(f"/generate?model={family}&seed=7&n=3") for client in clients]
        assert here.status_code == 200
        assert (here.headers["etag"], here.content) == (there.headers["etag"], there.content), family
        again = await clients[1].get(there.headers["content-location"], headers={"If-None-Match": here.headers["etag"]})
        assert again.status_code == 304


# -- one engine for several HTTP processes ----------------------------------------------------------------------------


async def test_requests_of_two_processes_share_batches(
    settings: Settings, side: EngineSide, remote: Application
) -> None:
    async with remote_app(settings, side, index=1) as second, asgi_client(remote) as one, asgi_client(second) as other:
        url = "/generate?model=ddpm&steps=60&n=3&seed="
        responses = await asyncio.gather(one.get(f"{url}1"), other.get(f"{url}2"))
        assert [response.headers["x-batch"] for response in responses] == ["6", "6"]
        alone = await one.get(f"{url}2")
        assert alone.headers["x-batch"] == "3"
        assert alone.content == responses[1].content


async def test_the_queue_is_bounded_over_all_processes(
    settings: Settings, side: EngineSide, remote: Application
) -> None:
    async with remote_app(settings, side, index=1) as second, asgi_client(remote) as one, asgi_client(second) as other:
        long = "/generate?model=ddpm&steps=200&n=64&format=npz"
        accepted = [asyncio.create_task(client.get(long)) for client in (one, other, one)]
        await until(lambda: side.engine.outstanding == 3 * 64)
        refused = await other.get("/generate?model=gan&n=16")
        assert int(refused.headers["retry-after"]) >= 1
        problem(refused, 429, "queue-is-full")
        problem(await other.get("/generate?model=gan&n=16&format=events"), 429, "queue-is-full")
        assert (await other.get("/generate?model=gan&n=8")).status_code == 200
        for task in accepted:
            task.cancel()
        await asyncio.gather(*accepted, return_exceptions=True)
        await until(lambda: side.engine.outstanding == 0)
    assert side.engine.ended["cancelled"] >= 3


async def test_a_process_that_ends_leaves_no_requests(settings: Settings, side: EngineSide) -> None:
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(remote_app(settings, side, index=2))
        service = app.state.service
        model = service.catalog.models["ddpm"]
        service.engine.submit(Request(model.key, (Sample(StartState(1, 0)),), 900, model.sampler))
        await until(lambda: side.engine.outstanding == 1)
        (link,) = service.engine.links
        link.transport.abort()
        await until(lambda: side.engine.outstanding == 0)
        service.engine.requests.clear()


async def test_finished_requests_leave_no_reference_cycles(remote: Application) -> None:
    async with listening(remote) as url:
        gc.collect()
        gc.disable()
        try:
            async with httpx.AsyncClient(base_url=url) as client:
                for seed in range(4):
                    assert (await client.get(f"/generate?model=gan&seed={seed}")).status_code == 200
            await asyncio.sleep(2 * TELEMETRY_FLUSH_SECONDS)  # the log holds the requests until then
            assert not [found for found in gc.get_objects() if isinstance(found, Ticket | Hosted | Sent)]
        finally:
            gc.enable()


async def test_a_disconnect_frees_the_batch_slots(side: EngineSide, clients: Any) -> None:
    cancelled = side.engine.ended["cancelled"]
    for url in ("/generate?model=ddpm&steps=900&n=16", "/generate?model=ddpm&steps=900&n=40&format=zip"):
        with pytest.raises(httpx.ReadTimeout):
            await clients[1].post(url, timeout=0.3)
        await until(lambda: side.engine.outstanding == 0)
    assert side.engine.ended["cancelled"] == cancelled + 2


async def test_owners_and_priorities_reach_the_engine(side: EngineSide, remote: Application) -> None:
    service = remote.state.service
    model = service.catalog.models["gan"]
    seen: list[Any] = []
    submit = side.engine.submit

    def recorded(request: Request, on_update: Any, owner: str, *, again: bool) -> Any:
        seen.append((owner, request, again))
        return submit(request, on_update, owner)

    side.engine.submit = recorded  # type: ignore[method-assign, assignment]
    try:
        request = Request(model.key, (Sample(StartState(1, 0)),), 1, priority="bulk", timeout=30.0)
        ticket = service.engine.submit(request, owner="physics")
        await until(lambda: ticket.outcome)
    finally:
        del side.engine.submit
    assert seen == [("physics", request, False)]
    assert ticket.outcome == "delivered"


# -- an engine dies ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(weights: Path, tmp_path: Path, settings: Settings) -> Settings:
    """Settings with two models that load fast."""
    for name in ("ddpm", "gan"):
        shutil.copytree(weights / name, tmp_path / name)
    return settings.model_copy(update={"weights": tmp_path, "unconditional_model": "gan", "conditional_model": "gan"})


async def test_an_engine_that_dies_loses_no_request(few: Settings) -> None:
    async with (
        engine_side(few) as first,
        engine_side(few) as second,
        remote_app(few, first) as app,
        asgi_client(app) as client,
    ):
        await until(app.state.service.loader.started.is_set)
        remote: RemoteEngine = app.state.service.engine
        urls = [
            "/generate?model=ddpm&steps=30&seed=1",
            "/generate?model=ddpm&steps=12&n=20&seed=2&format=zip",
            "/generate?model=ddpm&steps=30&n=3&seed=3&format=npz&timeout=60",
        ]
        expected = [await client.get(url) for url in urls]
        pending = [asyncio.create_task(client.get(url)) for url in urls]

        def zip_has_begun() -> bool:
            return any(0 < len(sent.missing) < 20 == len(sent.ticket.images) for sent, _ in remote.requests.values())

        await until(zip_has_begun)
        await first.die()
        held = asyncio.create_task(client.get("/generate?model=gan&seed=1"))
        ready = await client.get("/readyz")
        assert (ready.status_code, set(ready.json()["models"].values())) == (503, {"loading"})
        await until(lambda: all(link is None for _, link in remote.requests.values()))
        await second.connect(remote)
        responses = await asyncio.gather(*pending)
        assert [response.content for response in responses] == [response.content for response in expected]
        assert (await held).status_code == 200
        assert second.engine.ended["delivered"] == 4
        assert not remote.requests
        samples = parse_metrics(app.metrics.render([]).decode())
        assert metric_value(samples, "replayed_total") == 3


async def test_a_request_waits_for_an_engine_until_its_deadline(few: Settings) -> None:
    async with engine_side(few) as side, remote_app(few, side) as app, asgi_client(app) as client:
        await until(app.state.service.loader.started.is_set)
        await side.die()
        problem(await client.get("/generate?model=gan&timeout=0.2"), 504, "too-late")
        assert not app.state.service.engine.images
        cancelled = asyncio.create_task(client.get("/generate?model=gan&n=64&format=npz"))
        full = [asyncio.create_task(client.get("/generate?model=gan&n=64&format=npz")) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await client.get("/generate?model=gan&n=16")
        problem(refused, 429, "queue-is-full")
        for task in (cancelled, *full):
            task.cancel()
        await asyncio.gather(cancelled, *full, return_exceptions=True)


async def test_a_request_that_kills_two_engines_fails_alone(few: Settings) -> None:
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(engine_side(few)) for _ in range(3)]
        app = await stack.enter_async_context(remote_app(few, sides[0]))
        client = await stack.enter_async_context(asgi_client(app))
        await until(app.state.service.loader.started.is_set)
        remote: RemoteEngine = app.state.service.engine
        urls = [f"/generate?model=ddpm&steps=30&seed={seed}" for seed in range(4)]
        expected = [await client.get(url) for url in urls]
        dying: list[EngineSide] = []
        for side in sides[:2]:
            make_mortal(side, 4711, dying)
        poison = asyncio.create_task(client.get("/generate?model=ddpm&steps=30&seed=4711"))
        others = [asyncio.create_task(client.get(url)) for url in urls]
        late = asyncio.create_task(client.get("/generate?model=ddpm&steps=900&seed=5&timeout=0.8"))
        for side in sides[1:]:
            await until(lambda: not remote.links)
            await side.connect(remote)
        responses = await asyncio.gather(*others)
        assert [response.content for response in responses] == [response.content for response in expected]
        detail = problem(await poison, 503, "unavailable")
        assert detail == "two workers crashed while running this request; it is not retried"
        assert dying == sides[:2]
        problem(await late, 504, "too-late")


def make_mortal(side: EngineSide, seed: int, dying: list[EngineSide]) -> None:
    """Let an engine die in the third step of a request with `seed`."""
    steps = 0
    noted = side.engine.on_schedule

    def die(rows: Any) -> None:
        nonlocal steps
        noted(rows)
        steps += any(ticket.request.samples[0].start.seed == seed for ticket, _ in rows)
        if steps == 3:
            steps = 4
            dying.append(side)
            for client in list(side.host.clients):
                assert client.transport is not None
                client.transport.abort()

    side.engine.on_schedule = die


async def test_a_request_that_many_dying_engines_had_fails(few: Settings) -> None:
    async with engine_side(few) as side, remote_app(few, side) as app, asgi_client(app) as client:
        await until(app.state.service.loader.started.is_set)
        remote: RemoteEngine = app.state.service.engine
        side.host.accept = lambda _: None  # type: ignore[method-assign]  # the engine never runs it
        waiting = asyncio.create_task(client.get("/generate?model=gan"))
        for _ in range(5):
            await until(lambda: any(link.requests for link in remote.links))
            (link,) = remote.links
            assert link.transport is not None
            link.transport.abort()
            await until(lambda: not remote.links)
            await side.connect(remote)
        problem(await waiting, 503, "unavailable")


async def test_two_engines_share_the_work(few: Settings) -> None:
    async with (
        engine_side(few) as first,
        engine_side(few) as second,
        remote_app(few, first, second) as app,
        asgi_client(app) as client,
    ):
        await until(app.state.service.loader.started.is_set)
        urls = [f"/generate?model=ddpm&steps=20&seed={seed}" for seed in range(8)]
        responses = await asyncio.gather(*map(client.get, urls))
        assert [side.engine.ended["accepted"] for side in (first, second)] == [4, 4]
        await first.die()
        again = await asyncio.gather(*map(client.get, urls))
        assert [response.content for response in again] == [response.content for response in responses]


async def test_a_full_engine_takes_the_requests_of_one_that_died(few: Settings) -> None:
    settings = few.model_copy(update={"queue_images": 8, "max_images": 8, "max_batch_size": 4})
    async with (
        engine_side(settings) as first,
        engine_side(settings) as second,
        remote_app(settings.model_copy(update={"queue_images": 16}), first, second) as app,
    ):
        service = app.state.service
        await until(service.loader.started.is_set)
        key = service.catalog.models["ddpm"].key
        samples = [tuple(Sample(StartState(i, j, 1)) for j in range(2)) for i in range(8)]
        tickets = [service.engine.submit(Request(key, each, 60, "ddim", timeout=60)) for each in samples]
        for ticket in tickets:
            service.engine.confirm(ticket)
        await until(lambda: all(ticket.accepted_at for ticket in tickets))
        assert [side.engine.outstanding for side in (first, second)] == [8, 8]
        await first.die()
        await until(lambda: all(ticket.outcome for ticket in tickets))
        assert {ticket.outcome for ticket in tickets} == {"delivered"}
        assert second.host.numbers == {}


# -- reloads and the end -----------------------------------------------------------------------------------------------


async def test_after_a_reload_both_versions_can_be_requested(few: Settings) -> None:
    async with (
        engine_side(few) as side,
        remote_app(few, side) as app,
        remote_app(few, side, index=1) as second,
        asgi_client(app) as client,
    ):
        first = await client.get("/generate?model=gan&seed=1")
        digest = replace_weights(few.weights, "gan", 1)
        await asyncio.gather(app.reload(), second.reload())
        assert second.state.service.catalog.models["gan"].digest == digest
        new = await client.get("/generate?model=gan&seed=1")
        assert new.headers["x-model-digest"] == digest
        assert new.headers["etag"] != first.headers["etag"]
        assert (await client.get(first.headers["content-location"])).content == first.content
        (few.weights / "ddpm" / "model.safetensors").write_bytes(b"damaged")
        await app.reload()
        ready = (await client.get("/readyz")).json()
        assert ready["models"]["ddpm"] == "ok"
        assert "model.safetensors has SHA-256" in ready["broken"]["ddpm"]


async def test_a_reload_that_fails_is_answered(few: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async with engine_side(few) as side, remote_app(few, side) as app, asgi_client(app) as client:
        manifest = few.weights / "ddpm" / "manifest.json"
        manifest.unlink()
        manifest.mkdir()  # what is no file cannot be read
        async with asyncio.timeout(30):
            await app.reload()
        assert "manifest.json cannot be read: Is a directory" in (await client.get("/readyz")).json()["broken"]["ddpm"]

        async def fails() -> None:
            raise RuntimeError("a bug")

        side.loader.reload = fails  # type: ignore[method-assign]
        async with asyncio.timeout(30):
            await app.reload()
        assert "the weights cannot be reloaded" in caplog.text
        assert (await client.get("/generate?model=gan")).status_code == 200


async def test_models_are_loaded_on_demand(few: Settings) -> None:
    few = few.model_copy(update={"max_loaded_models": 1})
    async with engine_side(few) as side, remote_app(few, side) as app, asgi_client(app) as client:
        for model in ("ddpm", "gan", "ddpm"):
            states = await asyncio.gather(*(client.get(f"/generate?model={model}&steps=1") for _ in range(3)))
            assert {response.status_code for response in states} == {200}
            assert list(side.loader.catalog.loaded) == [app.state.service.catalog.models[model].key]
        await until(lambda: app.state.service.catalog.loaded.keys() == side.loader.catalog.loaded.keys())
        listed = {one["name"]: one["state"] for one in (await client.get("/models")).json()["models"]}
        assert listed == {"ddpm": "loaded", "gan": "on demand"}


async def test_a_shutdown_finishes_accepted_requests(few: Settings) -> None:
    few = few.model_copy(update={"drain_timeout": 2.0})
    async with engine_side(few) as side, remote_app(few, side) as app, asgi_client(app) as client:
        await until(app.state.service.loader.started.is_set)
        tasks = [asyncio.create_task(client.get(f"/generate?model=ddpm&steps={n}")) for n in (20, 1000)]
        for _ in range(20):
            side.engine.queue_images = 10_000
            await asyncio.sleep(0.001)
        many = asyncio.create_task(client.get("/generate?model=ddpm&steps=1000&n=8&format=npz"))
        await until(lambda: len(app.state.service.engine.requests) == 3)
        draining = asyncio.create_task(app.drain())
        await asyncio.sleep(0)
        problem(await client.get("/generate?model=gan"), 503, "unavailable")
        assert (await tasks[0]).status_code == 200
        problem(await many, 503, "unavailable")
        await asyncio.gather(draining, tasks[1])
        await until(lambda: side.engine.outstanding == 0)


async def test_an_engine_ignores_a_process_with_other_code(side: EngineSide, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = dict(side.host.clients)
    monkeypatch.setattr("service.engine.remote.BUILD", "drawbridge 0.0")
    monkeypatch.setattr("service.engine.remote.os._exit", lambda status: exits.append(status))
    exits: list[int] = []
    engine = RemoteEngine(10, 5)
    await side.connect(engine)
    await until(lambda: exits)
    assert exits == [1]
    assert not engine.links
    assert side.host.clients.keys() == clients.keys()
