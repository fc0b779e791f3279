"""`drawbridge dataset`."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from drawbridge.cli import main
from drawbridge.client import Client
from drawbridge.dataset import FORMATS, Dataset
from harness.server import ROOT, Server, environment
from tests.conftest import CLASSES
from training import data


@pytest.mark.slow
def test_a_data_set_interrupted_twice_is_the_same_as_one_generated_at_once(
    server: Server, tmp_path: Path, expected: Callable[..., np.ndarray]
) -> None:
    arguments = ["dataset", "gmm", "--per-digit", "1200", "--seed", "3", "--url", server.url]
    interrupted, whole = tmp_path / "interrupted.npz", tmp_path / "whole.npz"
    parts = tmp_path / "interrupted.npz.parts"
    saved: dict[str, int] = {}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *arguments, "-o", str(interrupted)],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(list(parts.glob("*[0-9].npz"))) <= len(saved) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "images are saved in" in error
        assert "Traceback" not in error
        before, saved = saved, {path.name: path.stat().st_mtime_ns for path in parts.glob("*[0-9].npz")}
        assert len(before) < len(saved) < 12
        assert before.items() <= saved.items()
    assert main([*arguments, "-o", str(interrupted)]) == 0
    assert main([*arguments, "-o", str(whole)]) == 0
    assert interrupted.read_bytes() == whole.read_bytes()
    with np.load(whole) as archive:
        assert np.bincount(archive["labels"]).tolist() == [1200] * 10
        assert np.array_equal(archive["images"][:5], expected(model="gmm", digit=list(range(10)), n=5, seed=3))
    assert not parts.exists()
    assert main([*arguments, "-o", str(whole)]) == 2  # the output exists


def test_a_data_set_with_other_settings_is_not_continued(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.npz"
    Dataset(output, "npz").begin({"model": "cgan"}, 100)
    assert main(["dataset", "cgan", "--per-digit", "10", "-o", str(output), "--url", server.url]) == 2
    assert "is of a data set with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["idx", "png"])
def test_torchvision_loads_the_data_set(
    format: str, server: Server, tmp_path: Path, expected: Callable[..., np.ndarray]
) -> None:
    output = tmp_path / "digits"
    arguments = ["dataset", "flow", "--steps", "2", "--per-digit", "12", "--url", server.url]
    assert main([*arguments, "--format", format, "-o", str(output)]) == 0
    loaded = datasets.MNIST(str(output)) if format == "idx" else datasets.ImageFolder(str(output))
    assert len(loaded) == 120
    images = expected(model="flow", steps=2, digit=list(range(10)), n=120, seed=0)
    labels = [label for _, label in loaded]
    assert np.bincount(labels).tolist() == [12] * 10
    first, label = loaded[0]
    assert label == (0 if format == "png" else labels[0])
    assert np.array_equal(np.asarray(first.convert("L")), images[0])
    assert not Path(f"{output}.parts").exists()


def test_the_test_split_of_idx_has_a_sixth_as_many_images(
    server: Server, tmp_path: Path, expected: Callable[..., np.ndarray]
) -> None:
    output = tmp_path / "digits"
    arguments = ["dataset", "cgan", "--per-digit", "12", "--url", server.url, "--format", "idx", "-o", str(output)]
    assert main(arguments) == 0
    images = expected(model="cgan", digit=list(range(10)), n=140, seed=0)
    for split, part in (("train", images[:120]), ("test", images[120:])):
        loaded = datasets.MNIST(str(output), train=split == "train")
        assert np.array_equal(loaded.data, part)
        assert loaded.targets.tolist() == list(range(10)) * (len(part) // 10)


@pytest.mark.parametrize("output", ["x.npz", "X.NPZ", "png", "idx"])
def test_training_reads_what_dataset_writes(
    output: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Callable[..., np.ndarray]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["dataset", "cgan", "--per-digit", "2", "--url", server.url, "-o", output]
    assert main([*arguments, *(["--format", "idx"] if output == "idx" else [])]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = data.load(output, options=data.Options(held_out=0))
    images = expected(model="cgan", digit=list(range(10)), n=20, seed=0)
    order = np.argsort(np.arange(20) % 10, kind="stable") if output == "png" else np.arange(20)
    assert np.array_equal(dataset.images[:, 0], images[order])
    assert dataset.labels.tolist() == (order % 10).tolist()
    assert dataset.classes == tuple("0123456789")


@pytest.mark.parametrize("output", ["x.npz", "folder"])
def test_a_data_set_has_the_names_and_the_colours_of_its_model(
    output: str, named_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dataset", "pictures", "--per-label", "2", "--url", named_server.url, "-o", output]) == 0
    with Client(named_server.url) as client:
        samples = client.generate("pictures", label=CLASSES, n=10, seed=0)
    dataset = data.load(output, options=data.Options(held_out=0))
    assert dataset.images.shape == (10, 3, 24, 32)
    # Names that differ in case alone get folders that differ also where case does not count.
    names = ("Zebra", "ice cream", "pizza", "zebra (2)", "çay") if output == "folder" else CLASSES
    assert dataset.classes == names
    for image, label in zip(dataset.images.movedim(1, -1).numpy(), dataset.labels.tolist(), strict=True):
        number = CLASSES.index(names[label].removesuffix(" (2)"))
        assert any(np.array_equal(image, sample) for sample in samples.arrays[[number, number + 5]])
    if output == "x.npz":
        with np.load(output) as archive:
            assert archive["classes"].tolist() == list(CLASSES)


def test_numeric_folders_are_read_again_in_the_order_of_their_values(tmp_path: Path) -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    FORMATS["png"](tmp_path / "numbers", images, np.arange(12), [str(i) for i in range(12)])
    assert sorted(folder.name for folder in (tmp_path / "numbers").iterdir())[:3] == ["0", "1", "10"]
    dataset = data.load(str(tmp_path / "numbers"), options=data.Options(held_out=0))
    assert dataset.classes == tuple(str(i) for i in range(12))
    assert len(dataset.labels) == 12
    assert dataset.labels.tolist() == dataset.images[:, 0, 0, 0].tolist()


def test_folders_have_names_that_every_file_system_allows(tmp_path: Path) -> None:
    classes = ["a/b", "a:b", "..", ".hidden", "con", "salt & pepper", "x" * 300, "🍕", ""]
    images = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    FORMATS["png"](tmp_path / "out", images, np.arange(9), classes)
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 9
    assert {"salt & pepper", "🍕"} <= {folder.name for folder in folders}
    for folder in folders:
        assert not folder.name.startswith(".")
        assert len(folder.name.encode()) < 256
        assert len(list(folder.glob("*.png"))) == 1


def test_idx_holds_grey_images_only(
    named_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--per-label", "1", "--url", named_server.url, "--format", "idx"]
    assert main(["dataset", "pictures", *arguments, "-o", "colour"]) == 2
    assert "pictures has colour images of 5; use npz or png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["dataset", "drawings", "--steps", "2", *arguments, "-o", "grey"]) == 0
    assert data.load("grey").labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gan", "-o", "x.npz"], "gan takes no label"),
        (["nope", "-o", "x.npz"], "no model 'nope'; available models: acgan"),
        (["cgan", "--per-digit", "0", "-o", "x.npz"], "at least 1"),
        (["cgan", "--per-label", "0", "-o", "x.npz"], "at least 1"),
        (["cgan", "-o", "x.parquet"], "x.parquet: name a file that ends in .npz, or a directory with --format png or"),
        (["cgan", "-o", "x.ZIP"], "x.ZIP: name a file that ends in .npz"),
        (["cgan"], "required: -o/--output"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["dataset", *arguments, "--url", server.url]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
