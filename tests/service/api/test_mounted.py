"""The application below a root path, where Ray Serve's `route_prefix` and uvicorn's `--root-path` mount it."""

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import Application, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.settings import Settings
from tests.service.conftest import asgi_client, pixels, problem

ROOT = "/digits"
module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
@pytest.mark.parametrize("url", ["/generate?model=cgan&seed=1", "/interpolate?model=vae&seed=1&seed=2"])
async def test_a_seed_gives_the_same_bytes_below_any_root(app: FastAPI, client: httpx.AsyncClient, url: str) -> None:
    mounted = asgi_client(app, ROOT)
    expected, response = await client.get(url), await mounted.get(ROOT + url)
    assert expected.status_code == 200
    assert response.content == expected.content
    assert response.headers["content-location"] == ROOT + expected.headers["content-location"]
    assert (await mounted.get(response.headers["content-location"])).content == expected.content


@module_loop
async def test_the_etag_of_a_body_with_its_url_depends_on_the_root(app: FastAPI, client: httpx.AsyncClient) -> None:
    url, mounted = "/generate?model=cgan&seed=1&format=json", asgi_client(app, ROOT)
    plain, response = await client.get(url), await mounted.get(ROOT + url)
    assert (await mounted.get(response.json()["url"])).status_code == 200
    assert response.json()["url"].startswith(f"{ROOT}/generate?")
    assert plain.headers["etag"] != response.headers["etag"]


@module_loop
async def test_errors_name_the_requested_path(app: FastAPI) -> None:
    mounted = asgi_client(app, ROOT)
    problem(invalid := await mounted.get(f"{ROOT}/generate?model=cgan&n=0"), 422)
    assert invalid.json()["instance"] == f"{ROOT}/generate"
    assert problem(await mounted.get(f"{ROOT}/nothing"), 404) == f"nothing is at {ROOT}/nothing; see {ROOT}/docs"
    assert problem(await mounted.delete(f"{ROOT}/generate"), 405).startswith(f"{ROOT}/generate takes GET, HEAD, POST")
    assert "error" in (await mounted.post(f"{ROOT}/v1/images/generations", json={"model": "none"})).json()
    problem(await mounted.get(f"{ROOT}generate?model=cgan"), 404)


@module_loop
async def test_a_proxy_may_remove_the_root_from_the_path(app: FastAPI) -> None:
    response = await asgi_client(app, ROOT).get("/generate?model=cgan&seed=1")
    pixels(response)
    assert response.headers["content-location"].startswith(f"{ROOT}/generate?")


@module_loop
async def test_pages_and_their_assets_are_served_below_the_root(app: FastAPI) -> None:
    mounted = asgi_client(app, ROOT)
    page = (await mounted.get(f"{ROOT}/")).text
    (script,) = re.findall(r'<script type="module" src="(playground/[0-9a-f]+/main.js)"', page)
    for path in (script, "playground/main.js", "docs", "docs/assets/swagger-ui.css", "models", "readyz"):
        assert (await mounted.get(f"{ROOT}/{path}")).status_code == 200, path
    redirect = await mounted.get(ROOT)
    assert (redirect.status_code, redirect.headers["location"]) == (307, f"http://drawbridge{ROOT}/")
    assert {"url": ROOT} in (await mounted.get(f"{ROOT}/openapi.json")).json()["servers"]


@module_loop
async def test_metrics_count_requests_by_route_without_the_root(app: Application) -> None:
    mounted = asgi_client(app, ROOT)
    await mounted.get(f"{ROOT}/generate?model=pca&seed=1")
    page = (await mounted.get(f"{ROOT}/metrics")).text
    assert 'drawbridge_requests_total{code="200",model="pca",route="/generate"} 1.0' in page
    assert ROOT not in page


async def test_public_paths_need_no_key_below_the_root(weights: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.toml", "physics", {})
    authenticator = Authenticator(keys.read(tmp_path / "keys.toml"), tmp_path, 0, 1)
    app = create_app(Settings(weights=weights, device="cpu"), authenticator=authenticator, only="cgan")
    async with app.router.lifespan_context(app):
        mounted = asgi_client(app, ROOT)
        for path in ("", "/", "/livez", "/readyz", "/docs", "/playground/main.js"):
            assert (await mounted.get(ROOT + path)).status_code in (200, 307), path
        problem(await mounted.get(f"{ROOT}/generate"), 401)
        problem(await mounted.get(f"{ROOT}/metrics"), 401)
        assert (await mounted.get(f"{ROOT}/generate?model=cgan", headers={"X-API-Key": key})).status_code == 200


async def test_health_and_metrics_are_at_the_admin_port_only_below_the_root(weights: Path) -> None:
    app = create_app(Settings(weights=weights, device="cpu", admin_port=1), only="cgan")
    async with app.router.lifespan_context(app):
        main, admin = asgi_client(app, ROOT), asgi_client(app.admin, ROOT)
        for path in ("/livez", "/readyz", "/metrics"):
            problem(await main.get(ROOT + path), 404)
            assert (await admin.get(ROOT + path)).status_code == 200
        problem(await admin.get(f"{ROOT}/generate?model=cgan"), 404)
