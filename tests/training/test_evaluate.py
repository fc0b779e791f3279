"""Samples drawn as they are served, and what the bench makes of them."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from models import noise, store
from models.base import Family, Range, Rows
from models.families.ddpm import DDPM, DDPMConfig
from models.families.gan import GAN, GANConfig
from models.families.pca import PCA, PCAConfig
from models.pixels import to_unit
from models.store import Manifest
from training import classifier, data, evaluate, metrics, sources
from training.cli import main
from training.evaluate import Evaluator
from training.sources import SampleSet


@dataclasses.dataclass(frozen=True)
class NoConfig:
    pass


class Shade(Family):
    """Draws its label as a shade of grey, 20 a class, and 1 to 4 on top for the steps it took."""

    Config = NoConfig
    conditional = True
    steps = Range(1, 4, 2)

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        grey = (20 * label.argmax(1)).float()
        return grey.view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def step(self, rows: Rows) -> Tensor:
        return rows.state + 1

    def decode(self, state: Tensor) -> Tensor:
        return state / 127.5 - 1


class Static(Family):
    """Draws uncorrelated noise."""

    Config = NoConfig

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.zeros_like(seed), (1, 28, 28))

    def step(self, rows: Rows) -> Tensor:
        return rows.state


def card(**defaults: Any) -> Manifest:
    return Manifest("x", 1, {}, (1, 28, 28), (), defaults, {}, {}, {}, "", "")


@pytest.fixture(scope="module")
def bench() -> Evaluator:
    """The digits of scikit-learn, seen by a net that learned a little of them.

    An untrained one sees almost the same in every image, so that any distance would pass for none.
    """
    train, test = data.load("digits"), data.load("digits", split="test")
    return Evaluator(classifier.Classifier("brief", classifier.train("select", train, epochs=2), 0.0, ""), train, test)


def test_digits_are_asked_for_in_turn_with_the_defaults_of_the_manifest() -> None:
    drawn = sources.sample_exported(Shade(NoConfig()), card(steps=3), seed=0, count=130)
    assert drawn.requested_labels is not None
    assert drawn.requested_labels.tolist() == [i % 10 for i in range(130)]
    assert drawn.images.dtype == torch.uint8
    assert drawn.images.shape == (130, 1, 28, 28)
    assert drawn.images[:, 0, 0, 0].tolist() == [20 * (i % 10) + 3 for i in range(130)]


def test_a_manifest_without_defaults_gets_those_of_the_family() -> None:
    assert int(sources.sample_exported(Shade(NoConfig()), card(), seed=0, count=1).images.max()) == 2


def test_what_is_asked_wins_over_the_manifest() -> None:
    assert int(sources.sample_exported(Shade(NoConfig()), card(steps=3), seed=0, count=1, steps=4).images.max()) == 4


def test_a_family_without_labels_is_asked_for_none() -> None:
    assert sources.sample_exported(Static(NoConfig()), card(), seed=0, count=3).requested_labels is None


def test_fewer_samples_of_a_seed_are_the_first_of_more() -> None:
    few, more = (sources.sample_exported(Static(NoConfig()), card(), seed=5, count=n).images for n in (70, 130))
    assert torch.equal(few, more[:70])


def test_the_test_split_against_itself_is_perfect(bench: Evaluator) -> None:
    figures = bench.measure(SampleSet(bench.test.images, bench.test.labels))
    assert figures["mnist_cnn_fd"] == pytest.approx(0, abs=1e-6)
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["nearest_training_ratio"] == pytest.approx(1)


def test_copied_training_images_show_as_memorised(bench: Evaluator) -> None:
    copied = bench.measure(SampleSet(bench.train.images[:200], None))
    assert copied["nearest_training_ratio"] == pytest.approx(0, abs=1e-2)


def test_noise_is_farther_off_than_noisy_images_and_those_than_real_ones(bench: Evaluator) -> None:
    static = sources.sample_exported(Static(NoConfig()), card(), seed=0, count=300)
    spread = 60 * torch.randn(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noisy = (bench.train.images[:300] + spread).clamp(0, 255).to(torch.uint8)
    far, between, near = bench.measure(static), bench.measure(SampleSet(noisy, None)), bench.real_baseline(300)
    assert far["mnist_cnn_fd"] > between["mnist_cnn_fd"] > near["mnist_cnn_fd"]
    assert far["coverage"] <= between["coverage"] < near["coverage"]


def test_accuracy_is_counted_digit_by_digit(bench: Evaluator) -> None:
    images = bench.test.images[:100]
    judged = bench.judge.features_and_logits(images)[1].argmax(1)
    asked = torch.arange(100) % 10
    figures = bench.measure(SampleSet(images, asked))
    by_digit = [float((judged[asked == digit] == digit).double().mean()) for digit in range(10)]
    assert figures["accuracy_by_digit"] == by_digit
    assert figures["worst_digit"] == min(by_digit)
    assert figures["accuracy"] == pytest.approx(sum(by_digit) / 10)


def test_several_seeds_give_the_mean_and_students_interval() -> None:
    found = evaluate.over_seeds([{"fd": float(k), "by_digit": [k, 2.0 * k]} for k in (1, 2, 3)])
    assert found["fd"] == 2
    assert found["by_digit"] == [2, 4]
    assert found["interval"] == {"fd": pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)}


def test_one_seed_gives_no_interval() -> None:
    assert "interval" not in evaluate.over_seeds([{"fd": 1.0}])


def test_what_it_costs_is_counted() -> None:
    found = evaluate.cost(GAN(GANConfig()), card())
    assert found["macs"] == 100 * 128 + 128 * 256 + 256 * 784
    assert found["images_per_core_second"] > 0


def test_every_link_and_the_guidance_cost() -> None:
    family = DDPM(DDPMConfig(width=8)).for_sampling()
    macs = [
        evaluate.cost(family, card(steps=steps, guidance=guidance))["macs"]
        for steps, guidance in ((1, 1.0), (3, 1.0), (3, 2.0))
    ]
    assert macs == [macs[0], 3 * macs[0], 6 * macs[0]]


def test_what_reconstruction_loses_is_the_other_directions_share(bench: Evaluator) -> None:
    family = PCA(PCAConfig(code=30))
    family.fit(to_unit(bench.train.images), bench.train.labels)
    x = to_unit(bench.test.images).flatten(1)
    W = family.components.W
    lost = (x - family.components.mean) @ (torch.eye(784) - W @ W.T)
    found = evaluate.properties(family.for_sampling(), card(), bench.test)
    # [-1, 1] is twice as wide as [0, 1]; what lies outside is cut off, so a little less is lost.
    expected = float(lost.square().mean()) / 4
    assert 0.8 * expected < found["reconstruction_error"] < 1.02 * expected
    label = torch.zeros(len(bench.test.images), 0)
    assert found["code_log_density"] == pytest.approx(
        float(family.log_likelihood(to_unit(bench.test.images), label).mean()), rel=1e-4
    )


def test_an_image_costs_and_nothing_else_is_known_of_what_only_draws(bench: Evaluator) -> None:
    assert evaluate.properties(GAN(GANConfig()), card(), bench.test).keys() == {"cost"}


def test_a_classifier_learns_from_real_images_and_not_from_noise(
    bench: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "TAUGHT_EPOCHS", 6)
    train = bench.train
    mixed = train.labels[torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))]
    real, wrong = (
        evaluate.classification_accuracy_score(train.images, labels, bench.test)[evaluate.CAS]
        for labels in (train.labels, mixed)
    )
    assert real > 0.8
    assert wrong < 0.4


PUBLISHED = {
    "seeds": [0, 1, 2],
    "precision": 0.9,
    "recall": 0.8,
    "kid": 0.0002,
    "test_elbo": -100.0,
    "interval": {"precision": 0.01, "recall": 0.01, "kid": 0.00001},
}


@pytest.mark.parametrize(
    ("seeds", "found", "contradicted"),
    [
        ([0, 1, 2], {"precision": 0.909, "recall": 0.795, "kid": 0.00021, "test_elbo": -100.05}, set()),
        ([0, 1, 2], {"precision": 0.912, "recall": 0.795}, {"precision"}),
        ([0, 1, 2], {"kid": 0.00022, "test_elbo": -100.2}, {"kid", "test_elbo"}),
        ([7], {"precision": 0.918, "recall": 0.778}, {"recall"}),
    ],
)
def test_figures_contradict_published_ones_that_are_too_far_off(
    seeds: list[int], found: dict[str, float], contradicted: set[str]
) -> None:
    told = evaluate.contradictions({**found, "seeds": seeds}, PUBLISHED)
    assert told == {name: PUBLISHED[name] for name in contradicted}


def test_the_usual_fid_is_measured_printed_and_kept(
    bench: Evaluator, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Brightness:
        """Stands where Inception does: the distance of the images' mean brightness."""

        def __init__(self, path: Path) -> None:
            assert path == Path("net.pth")

        def hold_against(self, real: Tensor) -> None:
            self.real = real.float().mean()

        def distance(self, images: Tensor) -> float:
            return float((images.float().mean() - self.real).abs())

    shutil.copytree(weights / "pca", tmp_path / "pca")
    monkeypatch.setattr(classifier, "load", lambda _: bench.judge)
    monkeypatch.setattr(data, "load", lambda *asked: bench.train if asked[2] == "train" else bench.test)
    monkeypatch.setattr(metrics, "InceptionDistance", Brightness)
    flags = ["evaluate", "pca", "--weights", str(tmp_path), "-n", "200", "--seeds", "0", "--write"]
    assert main([*flags, "--inception", "net.pth"]) == 0
    fid = store.read_manifest(tmp_path / "pca").metrics["fid"]
    assert fid > 0
    assert f"FID, in Inception's features: {fid:.4f}" in capsys.readouterr().out
    assert main(flags) == 0
    assert store.read_manifest(tmp_path / "pca").metrics["fid"] == fid


def test_the_worst_are_those_the_judge_gives_the_digit_asked_for_the_least_chance(bench: Evaluator) -> None:
    images, labels = bench.test.images[:100], bench.test.labels[:100].clone()
    labels[7] = (labels[7] + 5) % 10
    chances = bench.judge.features_and_logits(images)[1]
    worst = bench.least_confident(SampleSet(images, labels))
    assert worst.shape == (30, 1, 28, 28)
    assert torch.equal(worst[0], images[chances[torch.arange(100), labels].argmin()])
    assert any(torch.equal(images[7], one) for one in worst)
    unasked = bench.least_confident(SampleSet(images, None))
    assert torch.equal(unasked[0], images[chances.amax(1).argmin()])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name the weights"),
        (["gan", "--inception", "nowhere.pth"], "--inception nowhere.pth"),
        (["gan", "--inception", __file__], f"--inception {__file__}"),
        (["gan", "-n", "5"], "fewer than 100"),
        (["gan", "--write", "--steps", "3"], "leave out --steps"),
        (["gan", "--write", "--judge", "select"], "leave out --judge"),
        (["gan", "--write", "--against", "http://127.0.0.1:9"], "leave out --against"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *flags]) == 2
    assert message in capsys.readouterr().err


def test_figures_go_into_the_manifest_and_what_took_long_stays(
    bench: Evaluator, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(weights / "gmm", tmp_path / "gmm")
    monkeypatch.setattr(classifier, "load", lambda _: bench.judge)
    monkeypatch.setattr(data, "load", lambda *asked: bench.train if asked[2] == "train" else bench.test)
    monkeypatch.setattr(evaluate, "TAUGHT", 200)
    monkeypatch.setattr(evaluate, "TAUGHT_EPOCHS", 1)
    flags = ["gmm", "--weights", str(tmp_path), "-n", "200", "--seeds", "0", "1", "--write"]
    assert main(["evaluate", *flags, "--taught"]) == 0
    first = store.read_manifest(tmp_path / "gmm").metrics
    assert first["seeds"] == [0, 1]
    assert first["interval"]["mnist_cnn_fd"] > 0
    assert 0 <= first["classification_accuracy_score"] <= 1
    assert 0 <= first["real"]["classification_accuracy_score"] <= 1
    capsys.readouterr()
    assert main(["evaluate", *flags[:-1]]) == 0
    assert "as the manifest says" in capsys.readouterr().out
    assert main(["evaluate", *flags[:-1], "-n", "150"]) == 0
    assert "not compared" in capsys.readouterr().out
    altered = {**first, "recall": first["recall"] + 2 * first["interval"]["recall"] + 0.01}
    store.annotate(tmp_path / "gmm", metrics=altered)
    assert main(["evaluate", *flags[:-1]]) == 1
    assert f"recall {first['recall']:.4f}: the manifest says {altered['recall']:.4f}" in capsys.readouterr().out
    flags[flags.index("--seeds") + 1 : flags.index("--write")] = ["0"]
    assert main(["evaluate", *flags]) == 0
    second = store.read_manifest(tmp_path / "gmm").metrics
    assert "interval" not in second
    assert main(["evaluate", *flags[:-1], "--worst", str(tmp_path / "worst")]) == 0
    with Image.open(tmp_path / "worst" / "gmm.png") as picture:
        assert picture.size == (280, 84)
    for before, after in ((first, second), (first["real"], second["real"])):
        assert before["classification_accuracy_score"] == after["classification_accuracy_score"]
    assert {"cost", "code_log_density", "reconstruction_error", "samples", "judge"} <= second.keys()
    printed = capsys.readouterr().out
    assert f"{second['mnist_cnn_fd']:.4f}" in printed
    assert "nats" in printed
