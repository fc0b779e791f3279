"""`drawbridge dataset --keep` and `--no-copies`."""

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from drawbridge.cli import main
from drawbridge.client import Client
from drawbridge.dataset import parts as parts_module
from drawbridge.dataset.parts import IMAGES_PER_CLASS
from harness.server import Server
from models import store
from models.pixels import to_unit
from tests.conftest import WEIGHTS, manifest_of, small
from tests.serving import serving
from training import classifier, data

LABELS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with training data, in which every third image nearly equals a draw, and weights of that data."""
    root = tmp_path_factory.mktemp("filtered")
    family = small("cgan", (1, 28, 28), LABELS).for_sampling()
    manifest = manifest_of(family, ("a", "b", "c"))
    store.save(root / "first" / "drawings", family, manifest, b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAWBRIDGE_WEIGHTS", str(root / "first"))
        assert main(["dataset", "drawings", "--per-label", "30", "-o", str(root / "draws.npz")]) == 0
    archive = np.load(root / "draws.npz")
    draws = [archive["images"][archive["labels"] == label] for label in range(LABELS)]
    train = np.concatenate([of_class[::3] for of_class in draws])
    test = np.where(train < 255, train + 1, train)
    np.savez(
        root / "data.npz", x_train=train, y_train=np.arange(30) // 10, x_test=test, y_test=np.arange(30) // 10,
        classes=np.array(["a", "b", "c"]),
    )  # fmt: skip
    loaded = data.load(str(root / "data.npz"))
    described = {"name": str(root / "data.npz"), "digest": loaded.digest}
    store.save(root / "weights" / "drawings", family, dataclasses.replace(manifest, dataset=described), b"")
    torch.manual_seed(0)
    net = classifier.CNN(16, (1, 28, 28), LABELS).eval()
    with torch.no_grad():  # its opinions are random, and differ between draws
        features = net(to_unit(torch.from_numpy(np.concatenate(draws)).unsqueeze(1)))[0]
        net.head.weight.copy_(torch.randn(LABELS, features.shape[1]) / features.std(0).clamp(min=1e-6) / 8)
        net.head.bias.copy_(-net.head.weight @ features.mean(0))
    facts = {"test_accuracy": 0.5, "recipe": {"width": 16}}
    classifier.write(root / "judges" / "data" / "select", net, loaded, facts)
    return root


@pytest.fixture(scope="module")
def drawings(place: Path) -> Iterator[Server]:
    with serving(place / "weights") as running:
        yield running


@pytest.fixture(autouse=True)
def own_directory(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has the judge of the training data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges").symlink_to(place / "judges")


def confidences(place: Path, server: Server, label: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first draws of a class, and the judge's probabilities of their label."""
    with Client(server.url) as client:
        images = client.generate("drawings", label="abc"[label], n=count, seed=0, first=label * IMAGES_PER_CLASS).arrays
    judge = classifier.read(place / "judges" / "data" / "select")
    probabilities = judge.features_and_logits(torch.from_numpy(images).unsqueeze(1))[1]
    return images, probabilities[:, label].numpy()


def test_kept_images_are_the_first_draws_that_meet_the_conditions(
    place: Path, drawings: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--count", "a=20", "--count", "c=5", "--test-share", "0.2", "--keep", "confidence>=0.3"]
    assert main(["dataset", "drawings", *flags, "--url", drawings.url, "-o", "x.npz"]) == 0
    archive, card = np.load("x.npz"), json.loads(Path("x.npz.card.json").read_text())
    total_drawn = total_dropped = 0
    for label, (train, test) in {0: (20, 4), 2: (5, 1)}.items():
        images, confidence = confidences(place, drawings, label, 200)
        kept = np.flatnonzero(confidence >= 0.3)[: train + test]
        assert 0 < len(kept) == train + test < kept[-1] + 1
        for split, numbers in (("train", kept[:train]), ("test", kept[train:])):
            assert np.array_equal(archive[f"x_{split}"][archive[f"y_{split}"] == label], images[numbers])
        assert card["drawn"]["abc"[label]] == kept[-1] + 1
        assert card["filters"][0]["dropped"]["abc"[label]] == kept[-1] + 1 - len(kept)
        total_drawn += kept[-1] + 1
        total_dropped += kept[-1] + 1 - len(kept)
    assert card["drawn"]["b"] == card["filters"][0]["dropped"]["b"] == 0
    assert card["filters"][0]["filter"] == "confidence>=0.3"
    assert card["filters"][0]["judge"] == "select"
    assert f"confidence>=0.3: {total_dropped} of {total_drawn} drawn images dropped (" in capsys.readouterr().err
    assert f"| all | 25 | 5 | {total_drawn} | {total_dropped} |" in Path("x.npz.card.md").read_text()


def test_the_margin_is_over_the_next_label(place: Path, drawings: Server) -> None:
    flags = ["--per-label", "8", "--keep", "margin>0 and confidence<0.99"]
    assert main(["dataset", "drawings", *flags, "--url", drawings.url, "-o", "x.npz"]) == 0
    archive = np.load("x.npz")
    judge = classifier.read(place / "judges" / "data" / "select")
    probabilities = judge.features_and_logits(torch.from_numpy(archive["images"]).unsqueeze(1))[1]
    assert probabilities.argmax(1).tolist() == archive["labels"].tolist()
    assert float(probabilities.max()) < 0.99


def test_a_filtered_set_is_the_same_after_interruptions_and_without_a_service(
    place: Path, drawings: Server, monkeypatch: pytest.MonkeyPatch,
    interrupted_after: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    monkeypatch.setattr(parts_module, "MIN_FILTERED_PART", 4)
    monkeypatch.setattr(parts_module, "PART_SIZE", 8)
    monkeypatch.setenv("DRAWBRIDGE_WEIGHTS", str(place / "weights"))
    arguments = ["dataset", "drawings", "--per-label", "160", "--keep", "confidence>=0.3", "-o"]
    for _ in range(3):
        with interrupted_after(1):
            assert main([*arguments, "interrupted.npz", "--url", drawings.url]) == 130
    assert main([*arguments, "interrupted.npz", "--url", drawings.url]) == 0
    assert main([*arguments, "local.npz"]) == 0
    assert Path("interrupted.npz").read_bytes() == Path("local.npz").read_bytes()
    assert Path("interrupted.npz.card.json").read_bytes() == Path("local.npz.card.json").read_bytes()


def test_a_class_that_cannot_be_filled_is_one_line(drawings: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--per-label", "600", "--keep", "confidence>=0.3 and confidence<0.300001", "--max-tries", "20"]
    assert main(["dataset", "drawings", *flags, "--url", drawings.url, "-o", "x.npz"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: class 'a': of 1024 images drawn, ")
    assert error.endswith(" were kept; loosen --keep, or raise --max-tries")
    assert not Path("x.npz").exists()
    assert main(["dataset", "drawings", *flags, "--url", drawings.url, "-o", "x.npz"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_data_without_a_judge_is_one_line(drawings: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("judges").unlink()
    flags = ["--keep", "confidence>=0.3", "--url", drawings.url, "-o", "x.npz"]
    assert main(["dataset", "drawings", *flags]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: --keep: no judge of data, the data of drawings; train one in this directory with `drawbridge judge "
        "--data DATA`\n"
    )
    assert not [*tmp_path.iterdir()]


def test_copies_of_training_images_are_left_out(place: Path, drawings: Server) -> None:
    flags = ["--per-label", "20", "--no-copies", "--url", drawings.url]
    assert main(["dataset", "drawings", *flags, "-o", "x.npz"]) == 0
    archive, card = np.load("x.npz"), json.loads(Path("x.npz.card.json").read_text())
    others = [number for number in range(30) if number % 3]  # every third of the first 30 draws is a training image
    for label in range(LABELS):
        images, _ = confidences(place, drawings, label, 30)
        assert np.array_equal(archive["images"][archive["labels"] == label], images[others])
    assert card["drawn"] == dict.fromkeys("abc", 30)
    assert card["filters"][0]["filter"] == "no copies"
    assert card["filters"][0]["dropped"] == dict.fromkeys("abc", 10)
    assert 0 < card["filters"][0]["distance"] < 28 + 0.001  # all 784 pixels of a test image differ by 1


def test_other_data_than_the_model_was_trained_on_is_refused(
    drawings: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-copies", "--data", "digits", "--url", drawings.url, "-o", "x.npz"]
    assert main(["dataset", "drawings", *flags]) == 2
    assert "--no-copies: digits holds other images than drawings was trained on" in capsys.readouterr().err


def test_a_filter_with_other_settings_does_not_continue_the_parts(
    drawings: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["dataset", "drawings", "--per-label", "5", "--url", drawings.url, "-o", "x.npz", "--keep"]
    with monkeypatch.context() as patch:
        patch.setattr(parts_module.Parts, "images", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main([*arguments, "confidence>=0.3"]) == 130
    assert main([*arguments, "confidence>=0.31"]) == 2
    assert "is of a data set with other settings" in capsys.readouterr().err
    assert main([*arguments, " confidence >= 0.30 "]) == 0


@pytest.mark.slow
def test_the_committed_judge_filters_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAWBRIDGE_WEIGHTS", str(WEIGHTS))
    assert main(["dataset", "cgan", "--per-label", "50", "--keep", "confidence>=0.9", "-o", "x.npz"]) == 0
    archive = np.load("x.npz")
    judge = classifier.load("select")
    probabilities = judge.features_and_logits(torch.from_numpy(archive["images"]).unsqueeze(1))[1]
    confidence = probabilities[torch.arange(500), torch.from_numpy(archive["labels"])]
    assert float(confidence.min()) >= 0.899  # one batch of 500 here, parts of 50 there
    card = json.loads(Path("x.npz.card.json").read_text())
    assert card["filters"][0]["judge_accuracy"] == judge.accuracy
    assert sum(card["filters"][0]["dropped"].values()) > 0
