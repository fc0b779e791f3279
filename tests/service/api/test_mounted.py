"""The application under a root path, as Ray Serve's `route_prefix` and uvicorn's `--root-path` mount it."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.settings import Settings
from tests.service.conftest import pixels, problem

ROOT = "/digits"


def under(app: object, root: str = ROOT) -> httpx.AsyncClient:
    """A caller of `app`, mounted at `root`."""
    transport = httpx.ASGITransport(app, root_path=root, raise_app_exceptions=False)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge")


module = pytest.mark.asyncio(loop_scope="module")


@module
@pytest.mark.parametrize("asked", ["/generate?model=cgan&seed=1", "/interpolate?model=vae&seed=1&seed=2"])
async def test_what_is_drawn_is_the_same_under_any_root(app: FastAPI, client: httpx.AsyncClient, asked: str) -> None:
    mounted = under(app)
    one, other = await client.get(asked), await mounted.get(ROOT + asked)
    assert one.status_code == 200
    assert other.content == one.content
    assert other.headers["content-location"] == ROOT + one.headers["content-location"]
    assert (await mounted.get(other.headers["content-location"])).content == one.content


@module
async def test_what_says_where_it_is_has_a_tag_of_its_own(app: FastAPI, client: httpx.AsyncClient) -> None:
    asked = "/generate?model=cgan&seed=1&format=json"
    one, other = await client.get(asked), await under(app).get(ROOT + asked)
    assert (await under(app).get(other.json()["url"])).status_code == 200
    assert other.json()["url"].startswith(f"{ROOT}/generate?")
    assert one.headers["etag"] != other.headers["etag"]


@module
async def test_errors_tell_of_the_path_that_was_asked(app: FastAPI) -> None:
    mounted = under(app)
    problem(wrong := await mounted.get(f"{ROOT}/generate?model=cgan&n=0"), 422)
    assert wrong.json()["instance"] == f"{ROOT}/generate"
    assert problem(await mounted.get(f"{ROOT}/nothing"), 404) == f"nothing is at {ROOT}/nothing; see {ROOT}/docs"
    assert problem(await mounted.delete(f"{ROOT}/generate"), 405).startswith(f"{ROOT}/generate takes GET, POST")
    assert "error" in (await mounted.post(f"{ROOT}/v1/images/generations", json={"model": "none"})).json()
    problem(await mounted.get(f"{ROOT}generate?model=cgan"), 404)


@module
async def test_a_proxy_may_have_taken_the_root_off(app: FastAPI) -> None:
    answer = await under(app).get("/generate?model=cgan&seed=1")
    pixels(answer)
    assert answer.headers["content-location"].startswith(f"{ROOT}/generate?")


@module
async def test_pages_and_what_they_are_made_of_are_there(app: FastAPI) -> None:
    mounted = under(app)
    assert "playground/main.js" in (await mounted.get(f"{ROOT}/")).text
    for path in ("playground/main.js", "docs", "docs/assets/swagger-ui.css", "models", "readyz"):
        assert (await mounted.get(f"{ROOT}/{path}")).status_code == 200, path
    bare = await mounted.get(ROOT)
    assert (bare.status_code, bare.headers["location"]) == (307, f"http://drawbridge{ROOT}/")
    assert {"url": ROOT} in (await mounted.get(f"{ROOT}/openapi.json")).json()["servers"]


@module
async def test_requests_are_counted_by_their_route(app: Application) -> None:
    mounted = under(app)
    await mounted.get(f"{ROOT}/generate?model=pca&seed=1")
    counted = (await mounted.get(f"{ROOT}/metrics")).text
    assert 'drawbridge_requests_total{code="200",model="pca",route="/generate"} 1.0' in counted
    assert ROOT not in counted


async def test_what_is_open_without_a_key_is_so_under_a_root(weights: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.toml", "physics", {})
    gate = Authenticator(keys.read(tmp_path / "keys.toml"), tmp_path, 0, 1)
    app = create_app(Settings(weights=weights, device="cpu"), authenticator=gate, only="cgan")
    async with app.router.lifespan_context(app):
        mounted = under(app)
        for path in ("", "/", "/livez", "/readyz", "/docs", "/playground/main.js"):
            assert (await mounted.get(ROOT + path)).status_code in (200, 307), path
        problem(await mounted.get(f"{ROOT}/generate"), 401)
        problem(await mounted.get(f"{ROOT}/metrics"), 401)
        assert (await mounted.get(f"{ROOT}/generate?model=cgan", headers={"X-API-Key": key})).status_code == 200


async def test_operations_stay_at_their_own_port_under_a_root(weights: Path) -> None:
    app = create_app(Settings(weights=weights, device="cpu", admin_port=1), only="cgan")
    async with app.router.lifespan_context(app):
        for path in ("/livez", "/readyz", "/metrics"):
            problem(await under(app).get(ROOT + path), 404)
            assert (await under(app.operations).get(ROOT + path)).status_code == 200
        problem(await under(app.operations).get(f"{ROOT}/generate?model=cgan"), 404)
