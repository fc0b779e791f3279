"""Evaluation: samples with the service's defaults, their figures, and the command."""

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
from training.cli import main, parser
from training.evaluate import Evaluator
from training.sources import SampleSet


@dataclasses.dataclass(frozen=True)
class NoConfig:
    pass


class Shade(Family):
    """Generates its label as a shade of grey: 20 times the class, plus the number of steps."""

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
    """Generates uncorrelated noise."""

    Config = NoConfig

    def initial_state(self, seed: Tensor, index: Tensor, label: Tensor, coefficients: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.zeros_like(seed), (1, 28, 28))

    def step(self, rows: Rows) -> Tensor:
        return rows.state


def manifest_with(**defaults: Any) -> Manifest:
    return Manifest("x", 1, {}, (1, 28, 28), (), defaults, {}, {}, {}, "", "")


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """An evaluator on scikit-learn's digits with a briefly trained classifier.

    An untrained classifier has almost the same features for every image, so all distances would be near 0.
    """
    train, test = (
        data.load("digits", options=data.Options(size=(28, 28))),
        data.load("digits", split="test", options=data.Options(size=(28, 28))),
    )
    return Evaluator(classifier.Classifier("brief", classifier.train("select", train, epochs=2), 0.0, ""), train, test)


def test_requested_digits_cycle_and_the_manifest_s_defaults_apply() -> None:
    samples = sources.sample_exported(Shade(NoConfig()), manifest_with(steps=3), seed=0, count=130)
    assert samples.requested_labels is not None
    assert samples.requested_labels.tolist() == [i % 10 for i in range(130)]
    assert samples.images.dtype == torch.uint8
    assert samples.images.shape == (130, 1, 28, 28)
    assert samples.images[:, 0, 0, 0].tolist() == [20 * (i % 10) + 3 for i in range(130)]


def test_the_family_s_defaults_apply_if_the_manifest_has_none() -> None:
    assert int(sources.sample_exported(Shade(NoConfig()), manifest_with(), seed=0, count=1).images.max()) == 2


def test_options_override_the_manifest_s_defaults() -> None:
    assert (
        int(sources.sample_exported(Shade(NoConfig()), manifest_with(steps=3), seed=0, count=1, steps=4).images.max())
        == 4
    )


def test_an_unconditional_family_has_no_requested_labels() -> None:
    assert sources.sample_exported(Static(NoConfig()), manifest_with(), seed=0, count=3).requested_labels is None


def test_samples_do_not_depend_on_the_count() -> None:
    few, more = (
        sources.sample_exported(Static(NoConfig()), manifest_with(), seed=5, count=n).images for n in (70, 130)
    )
    assert torch.equal(few, more[:70])


def test_the_test_split_scores_perfectly_against_itself(evaluator: Evaluator) -> None:
    figures = evaluator.measure(SampleSet(evaluator.test.images, evaluator.test.labels))
    assert figures["mnist_cnn_fd"] == pytest.approx(0, abs=1e-6)
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["nearest_training_ratio"] == pytest.approx(1)


def test_copied_training_images_have_distance_0(evaluator: Evaluator) -> None:
    figures = evaluator.measure(SampleSet(evaluator.train.images[:200], None))
    assert figures["nearest_training_ratio"] == pytest.approx(0, abs=1e-2)


def test_noise_scores_worse_than_noisy_images_and_these_worse_than_real_ones(evaluator: Evaluator) -> None:
    static = sources.sample_exported(Static(NoConfig()), manifest_with(), seed=0, count=300)
    spread = 60 * torch.randn(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noisy = (evaluator.train.images[:300] + spread).clamp(0, 255).to(torch.uint8)
    far, between, near = (
        evaluator.measure(static),
        evaluator.measure(SampleSet(noisy, None)),
        evaluator.real_baseline(300),
    )
    assert far["mnist_cnn_fd"] > between["mnist_cnn_fd"] > near["mnist_cnn_fd"]
    assert far["coverage"] <= between["coverage"] < near["coverage"]


def test_accuracy_is_measured_per_digit(evaluator: Evaluator) -> None:
    images = evaluator.test.images[:100]
    predicted = evaluator.classifier.features_and_logits(images)[1].argmax(1)
    requested = torch.arange(100) % 10
    figures = evaluator.measure(SampleSet(images, requested))
    by_digit = [float((predicted[requested == digit] == digit).double().mean()) for digit in range(10)]
    assert figures["accuracy_by_digit"] == by_digit
    assert figures["worst_digit"] == min(by_digit)
    assert figures["accuracy"] == pytest.approx(sum(by_digit) / 10)


def test_several_seeds_give_the_mean_and_student_s_interval() -> None:
    figures = evaluate.over_seeds([{"fd": float(k), "by_digit": [k, 2.0 * k]} for k in (1, 2, 3)])
    assert figures["fd"] == 2
    assert figures["by_digit"] == [2, 4]
    assert figures["interval"] == {"fd": pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)}


def test_one_seed_gives_no_interval() -> None:
    assert "interval" not in evaluate.over_seeds([{"fd": 1.0}])


def test_cost_counts_multiplications_and_images_per_second() -> None:
    cost = evaluate.cost(GAN(GANConfig()), manifest_with())
    assert cost["macs"] == 100 * 128 + 128 * 256 + 256 * 784
    assert cost["images_per_core_second"] > 0


def test_cost_grows_with_steps_and_guidance() -> None:
    family = DDPM(DDPMConfig(width=8)).for_sampling()
    macs = [
        evaluate.cost(family, manifest_with(steps=steps, guidance=guidance))["macs"]
        for steps, guidance in ((1, 1.0), (3, 1.0), (3, 2.0))
    ]
    assert macs == [macs[0], 3 * macs[0], 6 * macs[0]]


def test_pca_s_reconstruction_error_is_the_share_of_the_dropped_directions(evaluator: Evaluator) -> None:
    family = PCA(PCAConfig(code=30))
    family.fit(to_unit(evaluator.train.images), evaluator.train.labels)
    x = to_unit(evaluator.test.images).flatten(1)
    W = family.components.W
    dropped = (x - family.components.mean) @ (torch.eye(784) - W @ W.T)
    figures = evaluate.properties(family.for_sampling(), manifest_with(), evaluator.test)
    # [-1, 1] is twice as wide as [0, 1]; values outside are clipped, which reduces the error a little.
    expected = float(dropped.square().mean()) / 4
    assert 0.8 * expected < figures["reconstruction_error"] < 1.02 * expected
    label = torch.zeros(len(evaluator.test.images), 0)
    assert figures["code_log_density"] == pytest.approx(
        float(family.log_likelihood(to_unit(evaluator.test.images), label).mean()), rel=1e-4
    )


def test_a_family_without_encoder_and_likelihood_has_only_a_cost(evaluator: Evaluator) -> None:
    assert evaluate.properties(GAN(GANConfig()), manifest_with(), evaluator.test).keys() == {"cost"}


@pytest.mark.slow
def test_the_classification_accuracy_score_is_high_for_real_labels_and_low_for_shuffled_ones(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CAS_EPOCHS", 6)
    train = evaluator.train
    shuffled = train.labels[torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))]
    real, wrong = (
        evaluate.classification_accuracy_score(train.images, labels, evaluator.test)[evaluate.CAS]
        for labels in (train.labels, shuffled)
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
    ("seeds", "figures", "contradicted"),
    [
        ([0, 1, 2], {"precision": 0.909, "recall": 0.795, "kid": 0.00021, "test_elbo": -100.05}, set()),
        ([0, 1, 2], {"precision": 0.912, "recall": 0.795}, {"precision"}),
        ([0, 1, 2], {"kid": 0.00022, "test_elbo": -100.2}, {"kid", "test_elbo"}),
        ([7], {"precision": 0.918, "recall": 0.778}, {"recall"}),
    ],
)
def test_figures_contradict_the_published_ones_beyond_their_interval(
    seeds: list[int], figures: dict[str, float], contradicted: set[str]
) -> None:
    assert evaluate.contradictions({**figures, "seeds": seeds}, PUBLISHED) == {
        name: PUBLISHED[name] for name in contradicted
    }


def test_fid_is_measured_printed_and_kept_in_the_manifest(
    evaluator: Evaluator,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Brightness:
        """A stand-in for FID: the difference of the images' mean brightness."""

        def __init__(self, path: Path) -> None:
            assert path == Path("net.pth")

        def set_reference(self, real: Tensor) -> None:
            self.real = real.float().mean()

        def distance(self, images: Tensor) -> float:
            return float((images.float().mean() - self.real).abs())

    shutil.copytree(weights / "pca", tmp_path / "pca")
    monkeypatch.setattr(classifier, "load", lambda _: evaluator.classifier)
    monkeypatch.setattr(data, "load", lambda *arguments: evaluator.train if arguments[2] == "train" else evaluator.test)
    monkeypatch.setattr(metrics, "InceptionDistance", Brightness)
    flags = ["evaluate", "pca", "--weights", str(tmp_path), "-n", "200", "--seeds", "0", "--write"]
    assert main([*flags, "--inception", "net.pth"]) == 0
    fid = store.read_manifest(tmp_path / "pca").metrics["fid"]
    assert fid > 0
    assert f"FID, in Inception's features: {fid:.4f}" in capsys.readouterr().out
    assert main(flags) == 0
    assert store.read_manifest(tmp_path / "pca").metrics["fid"] == fid


def test_the_worst_samples_have_the_lowest_probability_of_the_requested_digit(evaluator: Evaluator) -> None:
    images, labels = evaluator.test.images[:100], evaluator.test.labels[:100].clone()
    labels[7] = (labels[7] + 5) % 10
    probabilities = evaluator.classifier.features_and_logits(images)[1]
    worst = evaluator.least_confident(SampleSet(images, labels))
    assert worst.shape == (30, 1, 28, 28)
    assert torch.equal(worst[0], images[probabilities[torch.arange(100), labels].argmin()])
    assert any(torch.equal(images[7], image) for image in worst)
    unconditional = evaluator.least_confident(SampleSet(images, None))
    assert torch.equal(unconditional[0], images[probabilities.amax(1).argmin()])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name the weights"),
        (["gan", "--inception", "nowhere.pth"], "--inception nowhere.pth"),
        (["gan", "--inception", __file__], f"--inception {__file__}"),
        (["gan", "-n", "5"], "use at least 100"),
        (["gan", "--write", "--steps", "3"], "omit --steps"),
        (["gan", "--write", "--judge", "select"], "omit --judge"),
        (["gan", "--write", "--against", "http://127.0.0.1:9"], "omit --against"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_former_flag_taught_turns_on_cas_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["evaluate", "gan", "--taught"]).cas
    assert capsys.readouterr().err == "warning: --taught is deprecated; use --cas\n"
    assert not parser().parse_args(["evaluate", "gan"]).cas


def test_write_updates_the_manifest_and_keeps_expensive_figures(
    evaluator: Evaluator,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(weights / "gmm", tmp_path / "gmm")
    monkeypatch.setattr(classifier, "load", lambda _: evaluator.classifier)
    monkeypatch.setattr(data, "load", lambda *arguments: evaluator.train if arguments[2] == "train" else evaluator.test)
    monkeypatch.setattr(evaluate, "CAS_SAMPLES", 200)
    monkeypatch.setattr(evaluate, "CAS_EPOCHS", 1)
    flags = ["gmm", "--weights", str(tmp_path), "-n", "200", "--seeds", "0", "1", "--write"]
    assert main(["evaluate", *flags, "--cas"]) == 0
    first = store.read_manifest(tmp_path / "gmm").metrics
    assert first["seeds"] == [0, 1]
    assert first["interval"]["mnist_cnn_fd"] > 0
    assert 0 <= first["classification_accuracy_score"] <= 1
    assert 0 <= first["real"]["classification_accuracy_score"] <= 1
    capsys.readouterr()
    assert main(["evaluate", *flags[:-1]]) == 0
    assert "matches the manifest" in capsys.readouterr().out
    assert main(["evaluate", *flags[:-1], "-n", "150"]) == 0
    assert "not compared" in capsys.readouterr().out
    altered = {**first, "recall": first["recall"] + 2 * first["interval"]["recall"] + 0.01}
    store.annotate(tmp_path / "gmm", metrics=altered)
    assert main(["evaluate", *flags[:-1]]) == 1
    assert f"recall {first['recall']:.4f}: the manifest has {altered['recall']:.4f}" in capsys.readouterr().out
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
