"""Several processes that share each batch train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import families
from training.cli import main

ROOT = Path(__file__).parents[2]
TRAINED = [name for name in families.names() if families.get(name).recipe.epochs]


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def two(*module):
    """`module` by two processes."""
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "--", *module)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four iterations by one process; by two; and the last two of these by one, from where two were at half."""
    place = tmp_path_factory.mktemp("runs")
    module = "tests.training.shared_batch"
    for outcome in (
        run("-m", module, place / "one", 4),
        two(module, place / "two", 4),
        run("-m", module, place / "rest", 2, place / "two"),
    ):
        assert outcome.returncode == 0, outcome.stderr
    return {path.name: torch.load(path) for path in place.iterdir()}


def assert_close(a, b, what):
    scale = max(float(a.abs().max()), 1e-3)
    assert float((a - b).abs().max()) < 1e-8 * scale, what


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_find_what_one_does(runs, name):
    for i, (one, both) in enumerate(zip(runs["one"]["terms"][name], runs["two"]["terms"][name], strict=True)):
        assert one.keys() == both.keys()
        for term in one:
            assert_close(one[term], both[term], (i, term))
    # Adam moves by the sign of a gradient that is only rounding, so weights are held to less than losses.
    for part in ("family", "average"):
        a, b = runs["one"]["states"][name][part], runs["two"]["states"][name][part]
        for tensor in a:
            assert torch.allclose(a[tensor].double(), b[tensor].double(), rtol=1e-4, atol=1e-5), (part, tensor)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_two_goes_on_with_one(runs, name):
    for straight, resumed in zip(runs["one"]["terms"][name][2:], runs["rest"]["terms"][name], strict=True):
        for term in straight:
            assert_close(straight[term], resumed[term], term)
    assert runs["rest"]["states"][name]["images"] == runs["one"]["states"][name]["images"]


def fit(place, family, *flags):
    width = ["--width", 8] if family == "ae" else ["--generator-width", 8, "--critic-width", 8]
    return (
        "training",
        "fit",
        family,
        "--run",
        place,
        "--data",
        "digits",
        "--device",
        "cpu",
        "--batch",
        64,
        *width,
        *flags,
    )


def lines(place):
    return [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("family", "apart"), [("ae", 1e-4), ("wgan_gp", 0.05)])
def test_curves_of_two_are_those_of_one(tmp_path, family, apart):
    """By the command line, in single precision; rounding grows in a game, where each answers the other."""
    alone = run("-m", *fit(tmp_path / "one", family, "--epochs", 2))
    both = two(*fit(tmp_path / "two", family, "--epochs", 2))
    assert (alone.returncode, both.returncode) == (0, 0), alone.stderr + both.stderr
    assert both.stdout.count("done: ") == 1
    one, shared = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["images"] for line in one] == [line["images"] for line in shared]
    for a, b in zip(one, shared, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time"}:
            within = max(apart, 0.01) if name == "sample_distance" else apart * max(1.0, abs(a[name]))
            assert abs(a[name] - b[name]) <= within, (a, b)


def test_a_batch_that_cannot_be_shared_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("models.parallel.size", lambda: 2)
    assert main([str(word) for word in (*fit(tmp_path, "ae"), "--batch", 63)[1:]]) == 2
    assert capsys.readouterr().err == "error: --batch: 2 processes share each batch; give a multiple of that\n"
