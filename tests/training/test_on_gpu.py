"""Training on a CUDA GPU: recorded iterations, runs resumed to the bit, and the reasons to stop."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from models import families
from tests.conftest import SMALL
from training import checkpoint, data
from training.cli import main
from training.interrupts import restored_handlers
from training.loop import Hardware, Trainer
from training.numerics import reproducible
from training.recording import recorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda", 0)
BY_GRADIENTS = [name for name in families.names() if families.get(name).recipe.epochs]


def trainer(name: str, *, recorded: bool) -> Trainer:
    """A small trainer on the GPU, at the beginning of its random numbers."""
    kind = families.get(name)
    torch.manual_seed(1)
    family = kind(kind.Config(**SMALL.get(name, {})), (1, 28, 28), 10)
    digits = data.load("digits", options=data.Options(size=(28, 28)))
    recipe = dataclasses.replace(kind.recipe, batch=32)
    return Trainer(family, recipe, digits, Hardware(GPU, recorder(GPU) if recorded else None), seed=2)


def fit(name: str, run: Path, *flags: str) -> int:
    small = [text for key, value in SMALL.get(name, {}).items() if key != "most" for text in (_flag(key), str(value))]
    with restored_handlers(signal.SIGINT, signal.SIGTERM):
        return main(
            ["fit", name, "--run", str(run), "--data", "digits", "--device", "cuda", "--batch", "32", *small, *flags]
        )


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def latest(run: Path) -> dict[str, object]:
    return checkpoint.load(run / checkpoint.LATEST)


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_recorded_and_called_iterations_agree(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    with reproducible(GPU):
        for recorded in (False, True):
            trained = trainer(name, recorded=recorded)
            terms = [trained.train_step() for _ in range(3)]
            results.append((terms, trained.state_dict()["average"], torch.cuda.get_rng_state(GPU)))
    assert capsys.readouterr().err == "", "the iteration was recorded"
    for called, replayed in zip(results[0][0], results[1][0], strict=True):
        for key, value in called.items():
            torch.testing.assert_close(replayed[key], value, rtol=1e-2, atol=1e-3)
    for key, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], value, rtol=1e-2, atol=1e-3)
    assert torch.equal(results[0][2], results[1][2])


def test_iterations_that_cannot_be_recorded_are_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    with reproducible(GPU):
        for reads in (False, True):
            trained = trainer("gan", recorded=True)
            loss = trained.family.loss

            def reading_loss(player: str, x: torch.Tensor, label: torch.Tensor, loss: Any = loss) -> Any:
                assert float(x.abs().max()) <= 1
                return loss(player, x, label)

            monkeypatch.setattr(trained.family, "loss", reading_loss if reads else loss)
            results.append([float(trained.train_step()["generator.loss"]) for _ in range(3)])
    assert results[1] == pytest.approx(results[0], rel=1e-2)
    assert capsys.readouterr().err.startswith("iterations are not recorded, which is slower: ")


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_a_resumed_run_equals_a_straight_run_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--size", "28", "--epochs", "0.5", "--every", "300"]
    assert fit(name, tmp_path / "straight", *flags) == 0
    with monkeypatch.context() as patch:
        reasons = iter([None] * 2 + ["enough"])
        patch.setattr("training.fitting.stop_reason", lambda *_: lambda: next(reasons))
        assert fit(name, tmp_path / "split", *flags) == 130
    assert fit(name, tmp_path / "split", *flags) == 0
    straight, split = latest(tmp_path / "straight"), latest(tmp_path / "split")
    assert straight["images"] == split["images"]
    for part in ("family", "average", "random"):
        for key, value in straight[part].items():  # type: ignore[attr-defined]
            assert torch.equal(value, split[part][key]), key  # type: ignore[index]


def test_a_signal_and_the_time_limit_save_and_stop_a_run(tmp_path: Path) -> None:
    threading.Timer(10, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert fit("gan", tmp_path, "--epochs", "100000") == 130
    images = latest(tmp_path)["images"]
    assert isinstance(images, int)
    assert images > 0
    assert fit("gan", tmp_path, "--epochs", "100000", "--max-minutes", "0.05") == 0
    assert latest(tmp_path)["images"] > images  # type: ignore[operator]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    counts = [line["images"] for line in lines if "sample_distance" not in line]
    assert counts == sorted(set(counts))
