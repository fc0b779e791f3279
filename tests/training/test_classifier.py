"""The classifiers that samples are judged by."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models import store
from models.pixels import to_unit
from models.store import WeightsError
from training import classifier, data


def write_untrained(directory: Path, name: str, digest: str | None = None) -> classifier.CNN:
    """A judge's directory as training leaves it, with nets that learned nothing."""
    torch.manual_seed(0)
    net = classifier.CNN(classifier.WIDTHS[name]).eval()
    content = safetensors.torch.save(net.state_dict())
    manifest = {"test_accuracy": 0.1, "digest": digest or hashlib.sha256(content).hexdigest()}
    (directory / name).mkdir(parents=True)
    (directory / name / store.TENSORS).write_bytes(content)
    (directory / name / store.MANIFEST).write_text(json.dumps(manifest))
    return net


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(classifier, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", classifier.NAMES)
def test_a_judge_reads_back_as_it_was_written(root: Path, name: str) -> None:
    net = write_untrained(root, name)
    images = data.load("digits", split="test").images[:300]  # more than a batch of `look`, and a ragged one
    features, probabilities = classifier.load(name).features_and_logits(images)
    with torch.inference_mode():
        expected, logits = net(to_unit(images))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_a_judge_of_another_digest_is_refused(root: Path) -> None:
    write_untrained(root, "report", digest="0" * 64)
    with pytest.raises(WeightsError, match="not the file that its manifest tells of"):
        classifier.load("report")


@pytest.mark.parametrize("text", ["{", "{}", '{"digest": 1, "test_accuracy": null}'])
def test_a_judge_of_a_damaged_manifest_is_refused(root: Path, text: str) -> None:
    write_untrained(root, "report")
    (root / "report" / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="does not read as a manifest"):
        classifier.load("report")


def test_a_judge_of_another_width_is_refused(root: Path) -> None:
    write_untrained(root, "report")
    (root / "report").rename(root / "select")
    with pytest.raises(WeightsError, match="does not fit judge select"):
        classifier.load("select")


@pytest.mark.usefixtures("root")
def test_a_missing_judge_is_refused_with_the_command_that_makes_it() -> None:
    with pytest.raises(WeightsError, match="python -m training judge select"):
        classifier.load("select")


def test_the_two_judges_are_not_the_same_net() -> None:
    assert len(set(classifier.WIDTHS.values())) == len(classifier.NAMES) == 2


def test_augmentation_moves_ink_about_but_makes_none_and_stays_in_range() -> None:
    torch.manual_seed(0)
    x = to_unit(data.load("digits", split="test").images[:200])
    moved = classifier.augmented(x)
    assert moved.shape == x.shape
    assert moved.min() >= -1
    assert moved.max() <= 1
    ink, before = (moved + 1).sum((1, 2, 3)), (x + 1).sum((1, 2, 3))
    assert float((ink / before).mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(moved, x)


def test_training_teaches_a_judge_most_of_the_small_digits() -> None:
    test = data.load("digits", split="test")
    net = classifier.train("select", data.load("digits"), epochs=3)
    judged = classifier.Classifier("select", net, 0.0, "").features_and_logits(test.images)[1].argmax(1)
    assert float((judged == test.labels).float().mean()) > 0.8


@pytest.mark.parametrize("name", classifier.NAMES)
def test_a_judge_that_ships_knows_995_of_1000_test_digits(name: str) -> None:
    if not (classifier.ROOT / name / store.MANIFEST).exists():
        pytest.skip(f"no judge {name!r} yet: python -m training judge {name}")
    assert classifier.load(name).accuracy >= 0.995
