"""The command `privacy`: a model that copies is found, one that generates is not."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from models import store
from models.base import Family
from models.families.gmm import GMM, GMMConfig
from models.families.kde import KDE, KDEConfig
from models.pixels import to_unit
from tests.conftest import manifest_of
from tests.training.judging import brief, shapes
from tests.training.test_usefulness import inline
from training import classifier, data, docs, draws, pool
from training.cli import main
from training.data import Dataset
from training.privacy import membership, picture, results
from training.privacy.membership import COPIES, HELD_OUT, MODEL

PIXELS = {"pixels": membership.pixels}


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    """The splits of a data set of coloured shapes."""
    return {"train": shapes(400, 0), "test": shapes(200, 1)}


@pytest.fixture
def project(splits: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with weights `copier`, a kernel density of almost no bandwidth, and `mixture`."""
    train = splits["train"]
    shape = train.images.shape[1:]
    models: dict[str, Family] = {
        "copier": KDE(KDEConfig(code=300, points=400, spread=1e-3), tuple(shape)),
        "mixture": GMM(GMMConfig(code=8, most=2), tuple(shape), 3),
    }
    for name, family in models.items():
        family.fit(to_unit(train.images), train.labels)
        manifest = dataclasses.replace(
            manifest_of(family, train.classes), dataset={"name": "shapes", "digest": train.digest, "images": 400}
        )
        store.save(tmp_path / "weights" / name, family.for_sampling(), manifest, b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *arguments: splits[arguments[2]])
    monkeypatch.setattr(pool, "completed", inline)
    monkeypatch.setattr(draws, "CHUNK", 200)
    return tmp_path


def test_training_images_as_draws_are_found_and_held_out_ones_are_not(splits: dict[str, Dataset]) -> None:
    train, test = splits["train"].images, splits["test"].images
    copied = membership.tests(train, test, train, PIXELS)[MODEL]["pixels"]
    assert copied.auc > 0.99
    assert copied.low > 0.99
    assert copied.recognised == 1
    other = membership.tests(train, test, shapes(400, 2).images, PIXELS)[MODEL]["pixels"]
    assert other.low < 0.5 < other.high
    assert other.auc == pytest.approx(0.5, abs=0.06)
    assert other.recognised < 0.06


def test_the_rows_for_comparison_show_what_copies_and_held_out_images_have(splits: dict[str, Dataset]) -> None:
    found = membership.tests(splits["train"].images, splits["test"].images, shapes(200, 2).images, PIXELS)
    assert found[COPIES]["pixels"].auc == pytest.approx(0.75, abs=0.07)  # half of the training images are in its draws
    assert found[HELD_OUT]["pixels"].low < 0.5 < found[HELD_OUT]["pixels"].high


def test_a_few_copies_are_recognised_though_the_auc_hides_them(splits: dict[str, Dataset]) -> None:
    train, test = splits["train"].images, splits["test"].images
    few = torch.cat((shapes(380, 2).images, membership.choose(train, 20)))
    found = membership.tests(train, test, few, PIXELS)[MODEL]["pixels"]
    assert found.auc < 0.6
    assert found.recognised >= 0.1  # 20 of the 200 training images that are compared


def test_the_auc_is_that_of_scikit_learn_also_with_equal_distances() -> None:
    random = np.random.default_rng(0)
    members, held_out = random.integers(0, 30, 300), random.integers(5, 40, 200)
    truth = [1] * 300 + [0] * 200
    expected = roc_auc_score(truth, -np.concatenate((members, held_out)))
    assert membership.auc(members, held_out) == pytest.approx(expected, rel=1e-12)


def test_the_interval_is_that_of_the_auc_s_standard_error() -> None:
    generator = torch.Generator().manual_seed(0)
    points, members, held_out = (torch.randn(n, 2, generator=generator) for n in (100, 400, 400))
    found = membership.tell(points, members, held_out)
    error = (2 / 12 / 400) ** 0.5  # of an AUC near 0.5 (Hanley & McNeil 1982)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.low < found.auc < found.high
    assert membership.tell(points, members, held_out) == found


def test_the_command_finds_a_model_that_memorizes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "copier", "--draws", "800"]) == 0
    out = capsys.readouterr().out
    assert "no judge 'report' for shapes: distances of pixels alone" in out
    assert "`copier`: by pixels, draws are nearer to training images than to held-out ones" in out
    found = results.read(project / "runs" / "privacy" / "copier.json")
    assert found.tests[MODEL]["pixels"].auc > 0.85
    assert found.tests[MODEL]["pixels"].recognised > 0.7
    assert (found.draws, found.compared, found.train_images, found.judge) == (800, 200, 400, {})
    with Image.open(project / "runs" / "privacy" / "copier.png") as image:
        assert image.size == (1000, 660)


def test_the_command_compares_features_of_the_data_s_judge(
    project: Path, splits: dict[str, Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    train = splits["train"]
    net = brief("report", train, epochs=2).net
    facts = {"test_accuracy": 0.9, "recipe": {"width": classifier.WIDTHS["report"]}}
    classifier.write(classifier.place("report", train, project / "judges"), net, train, facts)
    assert main(["privacy", "mixture", "--draws", "300", "--output", "elsewhere"]) == 0
    out = capsys.readouterr().out
    assert "| | AUC by pixels | recognised by pixels | AUC by features | recognised by features |" in out
    found = results.read(project / "elsewhere" / "mixture.json")
    assert found.judge["name"] == "report"
    assert found.tests[MODEL].keys() == {"pixels", "features"}
    assert found.tests[MODEL]["pixels"].auc < 0.6
    assert results.sentence(found) in out


def test_copies_are_shown_with_the_images_that_they_copy(splits: dict[str, Dataset]) -> None:
    images = splits["train"].images
    drawn = shapes(100, 4).images.clone()
    drawn[50:62] = images[200:212]
    pairs, distances = picture.nearest_pairs(images, torch.full((400,), -1), drawn)
    assert torch.equal(pairs[:12], pairs[12:])
    assert {one.numpy().tobytes() for one in pairs[:12]} == {one.numpy().tobytes() for one in images[200:212]}
    assert distances.shape == (400,)


def test_every_label_has_its_nearest_images_shown(splits: dict[str, Dataset]) -> None:
    train = splits["train"]
    drawn = torch.cat((shapes(100, 4).images, train.images[train.labels == 0]))  # label 0 alone is copied
    pairs, distances = picture.nearest_pairs(train.images, train.labels, drawn)
    shown = [next(i for i, image in enumerate(train.images) if torch.equal(image, one)) for one in pairs[:12]]
    assert train.labels[shown].bincount().tolist() == [4, 4, 4]
    for label in (1, 2):
        of_label = (train.labels == label).nonzero()[:, 0]
        assert int(of_label[distances[of_label].argmin()]) in shown[:3]


def test_results_are_read_as_they_were_written_and_make_a_picture(splits: dict[str, Dataset], tmp_path: Path) -> None:
    train, test, drawn = splits["train"], splits["test"], shapes(100, 2).images
    tests = membership.tests(train.images, test.images, drawn, PIXELS)
    found = results.Results("m", "d", "shapes", 400, 200, 100, {}, tests)
    (tmp_path / "m.json").write_bytes(found.to_json())
    assert results.read(tmp_path / "m.json") == found
    with Image.open(io.BytesIO(picture.draw(found, train, test, drawn))) as image:
        assert image.format == "PNG"


def test_the_page_has_one_table_for_the_models_of_a_data_set(splits: dict[str, Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "privacy"
    assert docs.privacy_section(folder) == ""
    folder.mkdir()
    tests = membership.tests(splits["train"].images, splits["test"].images, shapes(100, 2).images, PIXELS)
    for name, of in (("a", "shapes"), ("b", "other"), ("c", "shapes")):
        found = results.Results(name, "d", of, 400, 200, 100, {}, tests)
        (folder / f"{name}.json").write_bytes(found.to_json())
    of_shapes, of_other = docs.privacy_section(folder).split("On other")
    assert of_shapes.startswith("On shapes: 200 of 400 training images and as many held-out ones, 100 draws:")
    rows = [line.split("|")[1].strip() for line in of_shapes.splitlines() if line.startswith("|")]
    assert rows[2:] == ["draws of `a`", "draws of `c`", *results.TITLES.values()]
    assert "(privacy/c.png)" in of_shapes
    assert "draws of `b`" in of_other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nothing"], "not a weights directory"),
        (["copier", "--draws", "5"], "--draws 5: use at least 100"),
        (["copier", "--output", "file/below"], "file/below"),
    ],
)
def test_wrong_input_is_a_one_line_error(
    project: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").write_text("")
    assert main(["privacy", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
