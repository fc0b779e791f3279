"""The judges: classifiers that evaluation measures with."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from models import store
from models.pixels import to_unit
from models.store import WeightsError
from tests.training.judging import brief, digits, shapes, write_untrained
from training import classifier, data, figures
from training.cli import main


@pytest.mark.parametrize("name", classifier.NAMES)
@pytest.mark.parametrize("of", ["digits", "shapes"])
def test_a_judge_loads_as_it_was_written(tmp_path: Path, name: str, of: str) -> None:
    judged = digits()[1] if of == "digits" else shapes(299, 0)  # not a multiple of the batch size
    net = write_untrained(tmp_path / name, name, judged)
    judge = classifier.read(tmp_path / name)
    features, probabilities = judge.features_and_logits(judged.images)
    with torch.inference_mode():
        expected, logits = net(to_unit(judged.images))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)
    assert (judge.name, judge.accuracy, judge.data) == (name, 0.1, classifier.JudgedData.of(judged))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 128), (3, 32, 32), (3, 48, 64), (1, 36, 36), (3, 128, 128)])
def test_a_judge_takes_images_of_any_size_and_colour(shape: tuple[int, ...]) -> None:
    features, logits = classifier.CNN(16, shape, 7)(torch.zeros(2, *shape))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 7)


def altered(directory: Path, **fields: object) -> Path:
    """A judge's directory after a change of its manifest."""
    path = directory / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return directory


def test_damaged_judges_are_refused(tmp_path: Path) -> None:
    write_untrained(tmp_path, "report", shapes(30, 0))
    with pytest.raises(WeightsError, match="does not match the digest in its manifest"):
        classifier.read(altered(tmp_path, digest="0" * 64))
    write_untrained(tmp_path, "report", shapes(30, 0))
    with pytest.raises(WeightsError, match="does not fit its manifest"):
        classifier.read(altered(tmp_path, recipe={"width": 16}))
    for text in ("{", "{}", '{"digest": 1, "test_accuracy": null}'):
        (tmp_path / store.MANIFEST).write_text(text)
        with pytest.raises(WeightsError, match="is not a valid manifest"):
            classifier.read(tmp_path)
    with pytest.raises(WeightsError, match="drawbridge judge --data DATA"):
        classifier.read(tmp_path / "nowhere")


def test_a_judge_is_found_by_the_digest_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = shapes(30, 0), shapes(30, 1)
    path = classifier.place("report", mine, tmp_path)
    assert path == tmp_path / f"shapes-{mine.digest[:12]}" / "report"
    write_untrained(path, "report", mine)
    assert classifier.find("report", mine.digest, tmp_path) == path
    assert classifier.find("report", other.digest, tmp_path) is None
    assert classifier.find("select", mine.digest, tmp_path) is None
    monkeypatch.setattr(classifier, "ROOT", tmp_path)  # as a judge of committed weights
    assert classifier.find("report", mine.digest, tmp_path / "nowhere") == path
    (path / store.MANIFEST).write_text("{}")
    with pytest.raises(WeightsError, match="restore or remove it"):
        classifier.find("report", mine.digest, tmp_path)


@pytest.mark.parametrize("name", classifier.NAMES)
def test_the_committed_judges_of_mnist_have_a_test_accuracy_of_995_in_1000(name: str) -> None:
    assert classifier.find(name, figures.MNIST, Path("nowhere")) == classifier.ROOT / name
    judge = classifier.load(name)
    assert judge.accuracy >= 0.995
    assert judge.data.shape == (1, 28, 28)
    assert judge.data.classes == tuple("0123456789")


def test_the_two_classifiers_differ_in_width() -> None:
    assert len(set(classifier.WIDTHS.values())) == len(classifier.NAMES) == 2


def test_augmentation_changes_images_but_neither_their_total_ink_nor_their_range() -> None:
    torch.manual_seed(0)
    x = to_unit(digits()[1].images[:200])
    augmented = classifier.augmented(x)
    assert augmented.shape == x.shape
    assert augmented.min() >= -1
    assert augmented.max() <= 1
    after, before = ((images + 1).sum((1, 2, 3)) for images in (augmented, x))
    assert float((after / before).mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(augmented, x)


def test_colour_pictures_are_also_mirrored_and_keep_the_colour_of_their_edges() -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 3, 32, 32)
    assert torch.allclose(classifier.augmented(x), x)
    x[..., :10] = -1
    left, right = (part.mean((1, 2, 3)) for part in classifier.augmented(x).split(16, dim=3))
    assert 60 < int((left > right).sum()) < 140
    grey = torch.ones(200, 1, 32, 32)
    grey[..., :10] = -1
    left, right = (part.mean((1, 2, 3)) for part in classifier.augmented(grey).split(16, dim=3))
    assert not (left > right).any()


def test_a_trained_classifier_recognises_most_small_digits_and_the_colours_of_shapes() -> None:
    train, test = digits()
    assert classifier.class_accuracies(brief("select", train, epochs=6), test)["test_accuracy"] > 0.8
    judge = brief("select", shapes(600, 0), epochs=8)
    assert classifier.class_accuracies(judge, shapes(90, 1))["test_accuracy"] > 0.8


def test_images_without_a_label_are_left_out() -> None:
    some = shapes(60, 0)
    unknown = dataclasses.replace(
        some, images=torch.cat((some.images, some.images)), labels=torch.cat((some.labels, some.labels * 0 - 1))
    )
    one, two = (brief("select", dataset, epochs=5).net.state_dict() for dataset in (some, unknown))
    assert all(torch.equal(one[key], two[key]) for key in one)
    judge = brief("select", some)
    assert classifier.class_accuracies(judge, some) == classifier.class_accuracies(judge, unknown)


def test_small_sets_are_seen_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MIN_IMAGES", 20 * classifier.BATCH)
    lines: list[str] = []
    classifier.train("select", shapes(30, 0), log=lines.append)
    assert lines[0].startswith("select: iteration 0 of 20, ")


def write_folder(directory: Path) -> Path:
    """A folder of pictures of shapes, with a test split."""
    from PIL import Image

    for split, count, seed in (("train", 150, 0), ("test", 60, 1)):
        dataset = shapes(count, seed)
        for i, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            path = directory / split / dataset.classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return directory


def test_the_command_trains_both_judges_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "my shapes")
    arguments = ["judge", "--data", str(folder), "--epochs", "1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    judged = data.load(str(folder))
    for name in classifier.NAMES:
        path = classifier.find(name, judged.digest)
        assert path == Path("judges") / f"my-shapes-{judged.digest[:12]}" / name
        judge = classifier.read(path)
        assert (judge.data.shape, judge.data.classes) == ((3, 12, 16), ("blue", "green", "red"))
        manifest = json.loads((path / store.MANIFEST).read_text())
        assert manifest["accuracy_by_class"].keys() == {"blue", "green", "red"}
        assert manifest["recipe"]["epochs"] == 1
        assert f"{path}: {100 * judge.accuracy:.2f} % accuracy on the test split; worst class" in out
    assert main([*arguments, "select", "--size", "8", "--channels", "1", "--judges", str(tmp_path / "mine")]) == 0
    (found,) = (tmp_path / "mine").glob("*/select")
    assert classifier.read(found).data.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("labels", "test_labels", "message"),
    [
        ([-1, -1], [-1, -1], "shapes has no labels; a judge needs two classes"),
        ([1, 1], [1, 1], "shapes has one class; a judge needs two classes"),
        ([0, 1], [-1, -1], "shapes has no labelled test images"),
    ],
)
def test_data_without_two_classes_has_no_judge(
    labels: list[int],
    test_labels: list[int],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = {
        split: dataclasses.replace(shapes(2, 0), labels=torch.tensor(of))
        for split, of in (("train", labels), ("test", test_labels))
    }
    monkeypatch.setattr(data, "load", lambda *arguments: splits[arguments[2]])
    assert main(["judge", "--data", "x"]) == 2
    assert message in capsys.readouterr().err
    assert main(["judge", "--data", "x", "--epochs", "0"]) == 2
    assert "use more than 0" in capsys.readouterr().err
