"""The benchmarks' door, and those that take no time."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("batch_invariance", "bulk", "cache", "capacity_model", "cluster", "encoding", "engine", "reload", "serve", "training_step")
ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("nope",), ("load",), ("peers",)])
def test_who_names_none_is_told_which_there_are(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == f"error: name one of {', '.join(NAMES)}\n"


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_measures_and_can_be_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert f"python -m benchmarks {name}" in (module.__doc__ or "")
    assert callable(module.main)


def test_a_replayed_gpu_keeps_gans_from_waiting_for_diffusion_and_nothing_is_lost() -> None:
    done = run("capacity_model", "--rates", "500", "3000", "--seconds", "0.3")
    assert done.returncode == 0, done.stderr
    rows = [list(map(float, line.split())) for line in done.stdout.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 2
    for asked, finished, _, _, gan_p99, unet_p50, _, _ in rows:
        assert finished == pytest.approx(asked, rel=0.1)
        assert gan_p99 < 3 * (1.5 + 0.012 * 128)  # three of the largest steps
        assert unet_p50 > 20 * 1.5
