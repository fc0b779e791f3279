"""The command `nearest`: the index of a model's training images."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models import nearest, store
from models.families.gmm import GMM, GMMConfig
from models.nearest import NearestIndex
from models.pixels import to_unit
from tests.conftest import manifest_of
from tests.training.judging import shapes
from training import data
from training.cli import main
from training.data import Dataset
from training.evaluation.nearest import Nearest


def write_npz(file: Path, train: Dataset) -> None:
    """Write a data set, whose last tenth or so will be held out."""
    images = train.images.movedim(1, -1).numpy()
    np.savez(file, images=images, labels=train.labels.numpy(), classes=np.array(train.classes))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with pictures.npz, and with weights `one` and `two` that saw nine tenths of it, and `all`."""
    write_npz(tmp_path / "pictures.npz", shapes(400, 0))
    monkeypatch.chdir(tmp_path)
    train = data.load("pictures.npz", None, "train", data.Options(held_out=0.1))
    family = GMM(GMMConfig(code=8, most=2), tuple(train.images.shape[1:]), 3)
    family.fit(to_unit(train.images), train.labels)
    for name, held_out in (("one", 0.1), ("two", 0.1), ("all", 0.0)):
        manifest = dataclasses.replace(
            manifest_of(family, train.classes), attribution="Shapes, CC0",
            dataset={"name": "pictures.npz", "digest": train.digest, "images": len(train.images), "held_out": held_out},
        )  # fmt: skip
        store.save(tmp_path / "weights" / name, family.for_sampling(), manifest, b"")
    return tmp_path


def test_the_index_holds_the_training_split_in_its_order_and_all_models_share_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nearest", "one"]) == 0
    train, test = (data.load("pictures.npz", None, split, data.Options(held_out=0.1)) for split in ("train", "test"))
    (file,) = (project / "weights").glob("*.nearest")
    assert file.name == f"pictures-{train.digest[:12]}.nearest"
    expected = rf"weights/{file.name}: {len(train.images)} training images of pictures, 0.\d MB, \d s\n"
    assert re.fullmatch(expected, capsys.readouterr().out)
    index = NearestIndex(file)
    assert torch.equal(index.images(range(len(train.images))), train.images)
    assert index.labels.tolist() == train.labels.tolist()
    card = index.card
    assert (card.name, card.digest, card.classes) == ("pictures", train.digest, train.classes)
    assert (card.attribution, card.images) == ("Shapes, CC0", len(train.images))
    assert len(index.held_out) == len(test.images)
    written = file.stat().st_mtime_ns
    assert main(["nearest", "two"]) == 0
    assert [*(project / "weights").glob("*.nearest")] == [file]
    assert file.stat().st_mtime_ns > written
    assert main(["nearest", "two", "--attribution", "mine"]) == 0
    assert NearestIndex(file).card.attribution == "mine"


def test_copies_are_those_that_evaluation_counts(project: Path) -> None:
    assert main(["nearest", "one"]) == 0
    train, test = (data.load("pictures.npz", None, split, data.Options(held_out=0.1)) for split in ("train", "test"))
    index = NearestIndex(nearest.path(project / "weights", "pictures", train.digest))
    measured = Nearest(train.images, test.images)
    assert index.card.near == pytest.approx(float(measured.near), abs=0.5)
    assert index.held_out.mean() == pytest.approx(float(measured.test_distance), rel=1e-4)
    found = sorted(index.search(image, 1)[0].distance for image in test.images)
    assert found == pytest.approx(index.held_out.tolist(), rel=1e-3)


def test_data_that_does_not_fit_is_one_line_and_writes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(project / "other.npz", shapes(400, 1))
    for arguments, message in (
        (["one", "--data", "other.npz"], "other.npz holds other images than one was trained on"),
        (["all"], "pictures.npz has no test images"),
        (["one", "--data", "missing.npz"], "missing.npz"),
        (["nope"], "nope has no manifest.json"),
    ):
        assert main(["nearest", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not list((project / "weights").glob("*.nearest"))
