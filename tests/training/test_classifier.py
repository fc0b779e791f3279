"""The classifiers that evaluation measures with."""

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
    """Write the files of classifier `name` with an untrained network."""
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
def test_a_classifier_loads_as_it_was_written(root: Path, name: str) -> None:
    net = write_untrained(root, name)
    images = data.load("digits", split="test", options=data.Options(size=(28, 28))).images[
        :300
    ]  # not a multiple of the batch size
    features, probabilities = classifier.load(name).features_and_logits(images)
    with torch.inference_mode():
        expected, logits = net(to_unit(images))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_a_weights_file_with_another_digest_is_refused(root: Path) -> None:
    write_untrained(root, "report", digest="0" * 64)
    with pytest.raises(WeightsError, match="does not match the digest in its manifest"):
        classifier.load("report")


@pytest.mark.parametrize("text", ["{", "{}", '{"digest": 1, "test_accuracy": null}'])
def test_a_damaged_manifest_is_refused(root: Path, text: str) -> None:
    write_untrained(root, "report")
    (root / "report" / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="is not a valid manifest"):
        classifier.load("report")


def test_a_classifier_of_another_width_is_refused(root: Path) -> None:
    write_untrained(root, "report")
    (root / "report").rename(root / "select")
    with pytest.raises(WeightsError, match="does not fit classifier select"):
        classifier.load("select")


@pytest.mark.usefixtures("root")
def test_the_error_for_a_missing_classifier_names_the_command_that_trains_it() -> None:
    with pytest.raises(WeightsError, match="python -m training judge select"):
        classifier.load("select")


def test_the_two_classifiers_differ_in_width() -> None:
    assert len(set(classifier.WIDTHS.values())) == len(classifier.NAMES) == 2


def test_augmentation_changes_images_but_neither_their_total_ink_nor_their_range() -> None:
    torch.manual_seed(0)
    x = to_unit(data.load("digits", split="test", options=data.Options(size=(28, 28))).images[:200])
    augmented = classifier.augmented(x)
    assert augmented.shape == x.shape
    assert augmented.min() >= -1
    assert augmented.max() <= 1
    after, before = ((images + 1).sum((1, 2, 3)) for images in (augmented, x))
    assert float((after / before).mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(augmented, x)


def test_a_trained_classifier_recognises_most_small_digits() -> None:
    test = data.load("digits", split="test", options=data.Options(size=(28, 28)))
    net = classifier.train("select", data.load("digits", options=data.Options(size=(28, 28))), epochs=3)
    predicted = classifier.Classifier("select", net, 0.0, "").features_and_logits(test.images)[1].argmax(1)
    assert float((predicted == test.labels).float().mean()) > 0.8


@pytest.mark.parametrize("name", classifier.NAMES)
def test_the_committed_classifiers_have_a_test_accuracy_of_995_in_1000(name: str) -> None:
    assert classifier.load(name).accuracy >= 0.995
