"""A new family in a single file can be trained, exported, served and listed."""

import httpx
import pytest

from models import families
from service.app import create_app
from service.settings import Settings
from training.cli import main

SOURCE = '''
"""Independent pixels around the mean of each class."""

from dataclasses import dataclass, field

import torch

from models import noise
from models.base import About, Family, Recipe


@dataclass(frozen=True)
class StippleConfig:
    contrast: float = field(default=1.0, metadata={"help": "scale of the logits"})


class Stipple(Family):
    Config = StippleConfig
    about = About("Stipple", "max E log p(x)", "a test, arXiv 0000.00000")
    recipe = Recipe(epochs=0.2, batch=32, lr=0.05)
    conditional = True

    def __init__(self, config, data_shape=(1, 28, 28), classes=10):
        super().__init__(config, data_shape, classes)
        self.logits = torch.nn.Parameter(torch.zeros(max(classes, 1), *data_shape))

    def loss(self, player, x, label):
        logits = self.config.contrast * self.logits[label.clamp(min=0)]
        target = (x + 1) / 2
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, target)}

    def initial_state(self, seed, index, label, coefficients):
        return noise.normal(seed, index, torch.zeros_like(seed), self.data_shape)

    def step(self, rows):
        logits = torch.einsum("bk,k...->b...", rows.label, self.logits)
        return logits.sigmoid() * 2 - 1 + 0.1 * rows.state
'''


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A directory that contains another folder of families, which has one family."""
    path = tmp_path / "families"
    path.mkdir()
    (path / "stipple.py").write_text(SOURCE)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(path)])
    return tmp_path


async def test_a_new_family_needs_only_one_file(directory, capsys):
    run, weights = directory / "run", directory / "weights"
    assert main(["fit", "stipple", "--contrast", "2", "--data", "digits", "--device", "cpu", "--run", str(run)]) == 0
    assert '"contrast": 2.0' in capsys.readouterr().out
    assert main(["export", str(run), "--name", "dots", "--weights", str(weights)]) == 0
    app = create_app(Settings(weights=weights, device="cpu", max_batch_size=4))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://drawbridge") as client,
    ):
        (model,) = (await client.get("/models")).json()["models"]
        assert (model["name"], model["family"], model["formula"]) == ("dots", "stipple", "max E log p(x)")
        assert model["takes"]["digit"]["one_of"] == list(range(10))
        responses = [await client.post(f"/generate?model=dots&seed=1&digit={digit}") for digit in (0, 1)]
        assert {response.headers["content-type"] for response in responses} == {"image/png"}
        assert responses[0].content != responses[1].content
        assert (await client.get("/readyz")).status_code == 200
