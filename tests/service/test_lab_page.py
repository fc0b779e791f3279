"""The lab's page at /lab, and that of the live lab at /lab/live."""

import json
import re

import httpx
import pytest

from service.api.pages import PLAYGROUND
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import problem
from training.lab import experiments


def client_of(settings):
    transport = httpx.ASGITransport(create_app(settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge", follow_redirects=True)


@pytest.mark.asyncio
async def test_the_page_and_its_images_are_served(tmp_path, weights):
    (tmp_path / "index.html").write_text("<title>the lab</title>")
    (tmp_path / "a.webp").write_bytes(b"animation")
    async with client_of(Settings(weights=weights, lab=tmp_path)) as client:
        page = await client.get("/lab")
        assert "the lab" in page.text
        assert page.url.path == "/lab/", "the page's relative links need the slash"
        image = await client.get("/lab/a.webp")
        assert (image.content, image.headers["content-type"]) == (b"animation", "image/webp")
        problem(await client.get("/lab/missing.png"), 404)
        problem(await client.get("/lab/%2e%2e/%2e%2e/etc/passwd"), 404)


@pytest.mark.asyncio
async def test_without_a_page_the_error_names_the_command_that_writes_it(tmp_path, weights):
    async with client_of(Settings(weights=weights, lab=tmp_path)) as client:
        assert "lab`" in problem(await client.get("/lab"), 404)


@pytest.mark.asyncio
@pytest.mark.parametrize("has_page", [True, False])
async def test_the_live_lab_is_served_with_and_without_a_lab_page(tmp_path, weights, has_page):
    if has_page:
        (tmp_path / "index.html").write_text("<title>the lab</title>")
    async with client_of(Settings(weights=weights, lab=tmp_path)) as client:
        page = await client.get("/lab/live?model=gan&at=3")
        assert page.status_code == 200
        assert "script-src 'self';" in page.headers["content-security-policy"]
        links = re.findall(r'(?:href|src)="([^"]*)"', page.text)
        assert not [link for link in links if not link.startswith((".", "data:,"))], "the page may be below a sub-path"
        for link in links:
            if link.endswith((".css", ".js")):
                assert (await client.get(str(page.url.join(link)))).status_code == 200, link
        with_slash = await client.get("/lab/live/?model=gan&at=3")
        assert with_slash.url == page.url
        assert with_slash.text == page.text


@pytest.mark.asyncio
async def test_every_module_of_the_live_lab_is_served_and_imports_only_files_beside_it(weights):
    modules = list((PLAYGROUND / "lab").rglob("*.js"))
    assert len(modules) > 10
    async with client_of(Settings(weights=weights)) as client:
        for path in modules:
            response = await client.get(f"/playground/{path.relative_to(PLAYGROUND)}")
            assert response.headers["content-type"].startswith("text/javascript"), path
            for name in re.findall(r'^(?:import|export) .*?from "([^"]+)"', response.text, re.MULTILINE):
                assert name.startswith("."), f"{path} imports {name}"
                assert (path.parent / name).is_file(), f"{path} imports {name}"


@pytest.mark.asyncio
async def test_the_committed_page_is_complete(weights):
    settings = Settings(weights=weights)
    async with client_of(settings) as client:
        text = (await client.get("/lab")).text
        assert 'href="live"' in text
        for name in experiments.NAMES:
            assert f'id="{name}"' in text
        for part in text.split('src="')[1:]:
            image = part.partition('"')[0]
            assert (await client.get(f"/lab/{image}")).status_code == 200, image
    for name in experiments.NAMES:
        result = json.loads((settings.lab / f"{name}.json").read_text())
        assert not result["quick"], f"{name} was written by a quick run"
        assert all(number["holds"] for number in result["numbers"]), name
