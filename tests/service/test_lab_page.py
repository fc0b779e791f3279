"""The lab's page as the service shows it."""

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import problem


def caller(settings):
    transport = httpx.ASGITransport(create_app(settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://drawbridge", follow_redirects=True)


@pytest.mark.asyncio
async def test_the_page_and_its_pictures_are_served(tmp_path, weights):
    (tmp_path / "index.html").write_text("<title>the lab</title>")
    (tmp_path / "a.webp").write_bytes(b"moving")
    async with caller(Settings(weights=weights, lab=tmp_path)) as client:
        page = await client.get("/lab")
        assert "the lab" in page.text
        assert page.url.path == "/lab/"  # or its pictures would be looked for elsewhere
        picture = await client.get("/lab/a.webp")
        assert (picture.content, picture.headers["content-type"]) == (b"moving", "image/webp")
        problem(await client.get("/lab/nothing.png"), 404)
        problem(await client.get("/lab/%2e%2e/%2e%2e/etc/passwd"), 404)


@pytest.mark.asyncio
async def test_without_a_page_the_answer_says_how_to_make_one(tmp_path, weights):
    async with caller(Settings(weights=weights, lab=tmp_path)) as client:
        assert "python -m training lab" in problem(await client.get("/lab"), 404)


@pytest.mark.asyncio
async def test_the_committed_page_is_whole(weights):
    settings = Settings(weights=weights)
    async with caller(settings) as client:
        text = (await client.get("/lab")).text
        for name in ("density", "pca_to_ae", "latent", "diffusion_2d", "xy_game", "gan_field", "optimal_d", "js_vs_w"):
            assert f'id="{name}"' in text
        assert 'id="mode_collapse"' in text
        assert "does not hold" not in text
        assert "the quick form" not in text
        for part in text.split('src="')[1:]:
            picture = part.partition('"')[0]
            assert (await client.get(f"/lab/{picture}")).status_code == 200, picture
