"""Training by several processes that share each batch equals training by one process."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from models import families
from tests.training.shared_batch import train
from training.cli import main

ROOT = Path(__file__).parents[2]
FAST = ("acgan",)
"""The families that are tested by default: acgan has batch norm, unknown labels and gradient penalties."""
SLOW = tuple(name for name in families.names() if families.get(name).recipe.epochs and name not in FAST)
TRAINED = (*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def run_two(*module):
    """Run `module` in two processes that share each batch."""
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "--", *module)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function from a family's name to the results of three runs.

    "one": four iterations by one process; "two": the same by two processes; "rest": the last two of these by one
    process, resumed from the state of "two" at half.
    """

    @lru_cache
    def train_all(names):
        output = tmp_path_factory.mktemp("runs") / "two"
        process = run_two("tests.training.shared_batch", output, 4, ",".join(names))
        assert process.returncode == 0, process.stderr
        two = torch.load(output)
        return {"one": train(names, 4), "two": two, "rest": train(names, 2, two["half"])}

    return lambda name: train_all(FAST if name in FAST else SLOW)


def assert_close(a, b, what):
    scale = max(float(a.abs().max()), 1e-3)
    assert float((a - b).abs().max()) < 1e-8 * scale, what


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one(runs, name):
    runs = runs(name)
    for i, (one, both) in enumerate(zip(runs["one"]["terms"][name], runs["two"]["terms"][name], strict=True)):
        assert one.keys() == both.keys()
        for term in one:
            assert_close(one[term], both[term], (i, term))
    # Adam turns a gradient that is only rounding error into a full step, so the tolerance of weights is larger.
    for part in ("family", "average"):
        a, b = runs["one"]["states"][name][part], runs["two"]["states"][name][part]
        for tensor in a:
            assert torch.allclose(a[tensor].double(), b[tensor].double(), rtol=1e-4, atol=1e-5), (part, tensor)


@pytest.mark.parametrize("name", TRAINED)
def test_one_process_resumes_a_run_of_two(runs, name):
    runs = runs(name)
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


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tolerance"), [("ae", 1e-4), ("wgan_gp", 0.05)])
def test_the_log_of_two_processes_equals_that_of_one(tmp_path, family, tolerance):
    """On the command line, in single precision. In a GAN each player's rounding errors change the other's loss."""
    single = run("-m", *fit(tmp_path / "one", family, "--epochs", 2))
    pair = run_two(*fit(tmp_path / "two", family, "--epochs", 2))
    assert (single.returncode, pair.returncode) == (0, 0), single.stderr + pair.stderr
    assert pair.stdout.count("done: ") == 1
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["images"] for line in one] == [line["images"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time"}:
            within = max(tolerance, 0.01) if name == "sample_distance" else tolerance * max(1.0, abs(a[name]))
            assert abs(a[name] - b[name]) <= within, (a, b)


def test_a_batch_size_that_processes_cannot_share_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("models.parallel.size", lambda: 2)
    assert main([str(argument) for argument in (*fit(tmp_path, "ae"), "--batch", 63)[1:]]) == 2
    assert capsys.readouterr().err == "error: --batch: 2 processes share each batch; use a multiple of that\n"
