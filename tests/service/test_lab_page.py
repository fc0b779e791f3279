"""The lab's page at /lab."""

import json

import httpx
import pytest

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
async def test_the_committed_page_is_complete(weights):
    settings = Settings(weights=weights)
    async with client_of(settings) as client:
        text = (await client.get("/lab")).text
        for name in experiments.NAMES:
            assert f'id="{name}"' in text
        for part in text.split('src="')[1:]:
            image = part.partition('"')[0]
            assert (await client.get(f"/lab/{image}")).status_code == 200, image
    for name in experiments.NAMES:
        result = json.loads((settings.lab / f"{name}.json").read_text())
        assert not result["quick"], f"{name} was written by a quick run"
        assert all(number["holds"] for number in result["numbers"]), name
