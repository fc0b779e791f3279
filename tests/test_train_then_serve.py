"""End to end: train on the digits that need no download, export, serve, generate."""

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from training.cli import main


@pytest.mark.parametrize("family", ["cgan"])
async def test_trained_weights_can_be_served(family, tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    tiny = ["--generator-width", "8", "--data", "digits", "--epochs", "0.2", "--device", "cpu"]
    assert main(["fit", family, "--run", str(run), *tiny]) == 0
    assert main(["export", str(run), "--name", "mine", "--weights", str(weights)]) == 0
    app = create_app(Settings(weights=weights, device="cpu", max_batch_size=8))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        response = await client.post("/generate", params={"model": "mine", "digit": 7})
        assert response.status_code == 200
        assert response.content.startswith(b"\x89PNG")
        manifest = (await client.get("/models/mine")).json()["manifest"]
        assert manifest["dataset"]["name"] == "digits"
