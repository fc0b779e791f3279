"""The formats of `drawbridge dataset`: the libraries that they are for load them; interruptions change no byte."""

import gc
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
import webdataset

from drawbridge.cli import main
from drawbridge.dataset import parts
from drawbridge.dataset.formats import FORMATS, Contents, Split, write_parquet, write_png, write_webdataset
from drawbridge.dataset.parts import IMAGES_PER_CLASS, Parts
from harness.server import ROOT, Server, environment
from tests.conftest import CLASSES
from training import data


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hugging Face's library, which must find everything on this machine."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    import datasets

    datasets.disable_progress_bars()
    return datasets


def contents(count: int, *, test: int = 0, colour: bool = False, classes: tuple[str, ...] = CLASSES) -> Contents:
    """Random images of 8x12 whose labels cycle through the classes."""
    random = np.random.default_rng(0)
    shape = (8, 12, 3) if colour else (8, 12)
    splits = [
        Split(name, np.arange(n) % len(classes), random.integers(0, 256, (n, *shape), np.uint8))
        for name, n in (("train", count), ("test", test))
        if n
    ]
    return Contents(splits, classes, shape)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("colour", [False, True])
def test_hugging_face_loads_parquet_with_images_and_class_labels(colour: bool, tmp_path: Path, datasets: Any) -> None:
    written = contents(25, test=5, colour=colour)
    write_parquet(tmp_path / "set", written, 10)
    assert sorted(path.name for path in (tmp_path / "set" / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        *(f"train-0000{number}-of-00003.parquet" for number in range(3)),
    ]
    files = {split: str(tmp_path / "set" / "data" / f"{split}-*.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    for split in written.splits:
        rows = loaded[split.name]
        assert rows.features["label"] == datasets.ClassLabel(names=list(CLASSES))
        assert isinstance(rows.features["image"], datasets.Image)
        assert rows["label"][:] == split.labels.tolist()
        for image, row in zip(split.images, rows, strict=True):
            assert row["image"].mode == ("RGB" if colour else "L")
            assert np.array_equal(np.asarray(row["image"]), image)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
@pytest.mark.parametrize("colour", [False, True])
def test_webdataset_and_hugging_face_load_shards(colour: bool, tmp_path: Path, datasets: Any) -> None:
    written = contents(25, test=5, colour=colour)
    (tmp_path / "set").mkdir()
    write_webdataset(tmp_path / "set", written, 10)
    shards = str(tmp_path / "set" / "train-{000000..000002}.tar")
    loaded = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    rows = [*loaded.decode("pil" if colour else "pill").to_tuple("png", "cls")]
    assert [label for _, label in rows] == written.splits[0].labels.tolist()
    for (image, _), expected in zip(rows, written.splits[0].images, strict=True):
        assert np.array_equal(np.asarray(image), expected)
    del loaded
    gc.collect()  # here, where the warning is expected
    files = {split: str(tmp_path / "set" / f"{split}-*.tar") for split in ("train", "test")}
    again = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert again["train"]["cls"][:] == written.splits[0].labels.tolist()
    assert np.array_equal(np.asarray(again["test"][4]["png"]), [*written.splits[1].images][4])


def test_tar_files_have_no_date_and_no_owner(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "x.tar", contents(3), None)
    with tarfile.open(tmp_path / "x.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members[:3]] == ["00000000.png", "00000000.cls", "00000001.png"]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


def test_a_row_group_of_parquet_is_bounded(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_parquet(tmp_path / "x.parquet", contents(2500), None)
    metadata = parquet.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [1000, 1000, 500]


def test_images_are_read_one_after_another_while_they_are_written(tmp_path: Path) -> None:
    """No format holds all images: much is written before the last one is read."""
    for name, format in FORMATS.items():
        output = tmp_path / name
        if not format.suffix or format.sharded:
            output.mkdir()
        written = contents(1500)
        seen = []

        def images(output: Path = output, split: Split = written.splits[0], seen: list[int] = seen) -> Iterator[Any]:
            for number, image in enumerate(split.images):
                if number in (0, 1499):
                    seen.append(sum(path.stat().st_size for path in [output, *output.rglob("*")] if path.is_file()))
                yield image

        lazy = Contents([Split("train", written.splits[0].labels, images())], CLASSES, written.shape)
        format.write(output, lazy, *([1000] if format.sharded else []))
        assert seen[0] < 1000 < 50_000 < seen[1], name


@pytest.mark.parametrize("format", ["idx", "png"])
def test_torchvision_loads_the_data_set(
    format: str, server: Server, tmp_path: Path, expected: Callable[..., np.ndarray]
) -> None:
    output = tmp_path / "digits"
    arguments = ["dataset", "flow", "--steps", "2", "--per-digit", "12", "--test-share", "1/6", "--url", server.url]
    assert main([*arguments, "--format", format, "-o", str(output)]) == 0
    for split, first, count in (("train", 0, 12), ("test", 12, 2)):
        loaded = (
            torchvision.datasets.MNIST(str(output), train=split == "train")
            if format == "idx"
            else torchvision.datasets.ImageFolder(str(output / split))
        )
        rows = [(np.asarray(image.convert("L")), label) for image, label in loaded]
        assert np.bincount([label for _, label in rows]).tolist() == [count] * 10
        sevens = expected(model="flow", steps=2, label=7, seed=0, first=7 * IMAGES_PER_CLASS + first, n=count)
        assert np.array_equal([image for image, label in rows if label == 7], sevens)
    assert not Path(f"{output}.parts").exists()


@pytest.mark.parametrize("test", [[], ["--test-share", "0.5"]])
@pytest.mark.parametrize("format", ["png", "parquet", "webdataset"])
def test_hugging_face_loads_the_directory_as_its_card_says(
    format: str, test: list[str], named_server: Server, tmp_path: Path, datasets: Any
) -> None:
    output = tmp_path / "set"
    arguments = ["--per-label", "2", *test, "--url", named_server.url, "--format", format, "-o", str(output)]
    assert main(["dataset", "pictures", *arguments]) == 0
    loaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 10} | ({"test": 5} if test else {})


@pytest.mark.parametrize("format", FORMATS)
def test_a_data_set_interrupted_thrice_has_the_same_bytes(
    format: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    interrupted_after: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    """Twice while parts are drawn, and once while the output is written."""
    monkeypatch.setattr(parts, "PART_SIZE", 8)
    flags = [] if format == "npz" else ["--format", format]
    arguments = ["dataset", "cgan", "--per-label", "20", "--test-share", "1/6", *flags, "--url", server.url]
    images = Parts.images
    output = "set.npz" if format == "npz" else "set"

    def run(folder: str) -> int:
        return main([*arguments, "-o", str(tmp_path / folder / output)])

    def read_some(self: Parts, *rest: Any) -> Iterator[Any]:
        for number, image in enumerate(images(self, *rest)):
            if number == 17:
                signal.raise_signal(signal.SIGINT)
            yield image

    for saved in (5, 10):
        with interrupted_after(5):
            assert run("interrupted") == 130
        assert saved <= len([*(tmp_path / "interrupted").glob("*.parts/*.part")]) < 30
        assert "the same command continues from there" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "images", read_some)
        assert run("interrupted") == 130
    assert not (tmp_path / "interrupted" / output).exists()
    assert run("interrupted") == run("whole") == 0
    assert tree(tmp_path / "interrupted") == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_a_process_that_is_interrupted_thrice_leaves_the_same_bytes(
    format: str, server: Server, tmp_path: Path
) -> None:
    flags = [] if format == "npz" else ["--format", format]
    arguments = ["dataset", "gmm", "--per-label", "1200", "--test-share", "1/6", *flags, "--url", server.url]
    output = "set.npz" if format == "npz" else "set"
    partial = tmp_path / "interrupted" / f"{output}.parts"
    saved: dict[str, int] = {}
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *arguments, "-o", str(tmp_path / "interrupted" / output)],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len([*partial.glob("*.part")]) <= len(saved) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "images are saved in" in error
        assert "Traceback" not in error
        before, saved = saved, {path.name: path.stat().st_mtime_ns for path in partial.glob("*.part")}
        assert len(before) < len(saved) < 110
        assert before.items() <= saved.items()
    for folder in ("interrupted", "whole"):
        assert main([*arguments, "-o", str(tmp_path / folder / output)]) == 0
    assert tree(tmp_path / "interrupted") == tree(tmp_path / "whole")


def write_folders(output: Path, classes: list[str]) -> None:
    """Write one image of each class, whose grey value is the class's number."""
    images = np.arange(len(classes), dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    output.mkdir()
    write_png(output, Contents([Split("train", np.arange(len(classes)), images)], classes, (28, 28)))


def test_numeric_folders_are_read_again_in_the_order_of_their_values(tmp_path: Path) -> None:
    write_folders(tmp_path / "numbers", [str(i) for i in range(12)])
    assert sorted(folder.name for folder in (tmp_path / "numbers").iterdir())[:3] == ["0", "1", "10"]
    dataset = data.load(str(tmp_path / "numbers"), options=data.Options(held_out=0))
    assert dataset.classes == tuple(str(i) for i in range(12))
    assert len(dataset.labels) == 12
    assert dataset.labels.tolist() == dataset.images[:, 0, 0, 0].tolist()


def test_folders_have_names_that_every_file_system_allows(tmp_path: Path) -> None:
    write_folders(tmp_path / "out", ["a/b", "a:b", "..", ".hidden", "con", "salt & pepper", "x" * 300, "🍕", ""])
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 9
    assert {"salt & pepper", "🍕"} <= {folder.name for folder in folders}
    for folder in folders:
        assert not folder.name.startswith(".")
        assert len(folder.name.encode()) < 256
        assert len(list(folder.glob("*.png"))) == 1
