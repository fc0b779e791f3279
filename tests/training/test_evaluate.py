"""Evaluation: samples with the service's defaults, their figures, and the command."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from models import noise, store
from models.base import Family, Range, Rows
from models.families.gan import GAN, GANConfig
from models.families.gmm import GMM, GMMConfig
from models.families.pca import PCA, PCAConfig
from models.nearest import points
from models.pixels import to_unit
from models.store import Manifest
from tests.conftest import manifest_of
from tests.training.judging import COLOURS, brief, digits, shapes
from training import classifier, data, figures, metrics, sources
from training.cli import main, parser
from training.config import ConfigError
from training.data import Dataset
from training.evaluation import cas, evaluate, inputs, nearest, properties, seeds, table
from training.evaluation.evaluator import Evaluator
from training.evaluation.seeds import contradictions
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
    train, test = digits()
    return Evaluator(brief("select", train, epochs=4), train, test)


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    """The splits of a data set of coloured shapes."""
    return {"train": shapes(300, 0), "test": shapes(120, 1)}


@pytest.fixture(scope="module")
def judges(splits: dict[str, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the judge `report` of the shapes."""
    root = tmp_path_factory.mktemp("judges")
    net = brief("report", splits["train"], epochs=8).net
    facts = {"test_accuracy": 0.95, "recipe": {"width": classifier.WIDTHS["report"]}}
    classifier.write(classifier.place("report", splits["train"], root), net, splits["train"], facts)
    return root


Run = Callable[..., int]


@pytest.fixture
def run(splits: dict[str, Dataset], judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `evaluate` on weights `shapes`, a mixture that was fitted to the shapes."""
    train = splits["train"]
    family = GMM(GMMConfig(code=8, most=2), (3, 12, 16), 3)
    family.fit(to_unit(train.images), train.labels)
    manifest = dataclasses.replace(
        manifest_of(family),
        classes=train.classes,
        dataset={"name": "shapes", "digest": train.digest, "images": len(train.images), "background": "black"},
    )
    store.save(tmp_path / "weights" / "shapes", family.for_sampling(), manifest, b"")
    read_as = data.Options(size=(12, 16), channels=3, background="black")

    def load(name: str, _: Path | None, split: str, options: data.Options) -> Dataset:
        assert options == read_as
        if name == "shapes":
            raise data.DataError("'shapes' is no data set")
        return splits[split]

    def run(*flags: str, given: str = "folder") -> int:
        where = ["--weights", str(tmp_path / "weights"), "--judges", str(judges)]
        return main(["evaluate", "shapes", *where, "--seeds", "0", "--data", given, *flags])

    monkeypatch.setattr(data, "load", load)
    return run


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
    assert figures["cnn_fd"] == pytest.approx(0, abs=1e-6)
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["nearest_training_ratio"] == pytest.approx(1)
    assert figures["sharpness"] == pytest.approx(1)
    assert figures["sliced_wasserstein"] == 0
    assert figures["copies"] == pytest.approx(0.01, abs=0.005)


def test_copied_training_images_have_distance_0(evaluator: Evaluator) -> None:
    figures = evaluator.measure(SampleSet(evaluator.train.images[:200], None))
    assert figures["nearest_training_ratio"] == pytest.approx(0, abs=1e-2)
    assert figures["copies"] == 1


def test_noise_scores_worse_than_noisy_images_and_these_worse_than_real_ones(evaluator: Evaluator) -> None:
    static = sources.sample_exported(Static(NoConfig()), manifest_with(), seed=0, count=300)
    spread = 60 * torch.randn(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noisy = (evaluator.train.images[:300] + spread).clamp(0, 255).to(torch.uint8)
    far, between, near = (
        evaluator.measure(static),
        evaluator.measure(SampleSet(noisy, None)),
        evaluator.real_baseline(300),
    )
    assert far["cnn_fd"] > between["cnn_fd"] > near["cnn_fd"]
    assert far["coverage"] <= between["coverage"] < near["coverage"]


def test_accuracy_is_measured_per_class(evaluator: Evaluator) -> None:
    images = evaluator.test.images[:100]
    predicted = evaluator.classifier.features_and_logits(images)[1].argmax(1)
    requested = torch.arange(100) % 10
    figures = evaluator.measure(SampleSet(images, requested))
    by_digit = [float((predicted[requested == digit] == digit).double().mean()) for digit in range(10)]
    assert figures["accuracy_by_class"] == by_digit
    assert figures["worst_class"] == min(by_digit)
    assert figures["accuracy"] == pytest.approx(sum(by_digit) / 10)


def test_several_seeds_give_the_mean_and_student_s_interval() -> None:
    figures = seeds.over_seeds([{"fd": float(k), "by_digit": [k, 2.0 * k]} for k in (1, 2, 3)])
    assert figures["fd"] == 2
    assert figures["by_digit"] == [2, 4]
    assert figures["interval"] == {"fd": pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)}


def test_one_seed_gives_no_interval() -> None:
    assert "interval" not in seeds.over_seeds([{"fd": 1.0}])


def test_pca_s_reconstruction_error_is_the_share_of_the_dropped_directions(evaluator: Evaluator) -> None:
    family = PCA(PCAConfig(code=30))
    family.fit(to_unit(evaluator.train.images), evaluator.train.labels)
    x = to_unit(evaluator.test.images).flatten(1)
    W = family.components.W
    dropped = (x - family.components.mean) @ (torch.eye(784) - W @ W.T)
    figures = properties.properties(family.for_sampling(), manifest_with(), evaluator.test)
    # [-1, 1] is twice as wide as [0, 1]; values outside are clipped, which reduces the error a little.
    expected = float(dropped.square().mean()) / 4
    assert 0.8 * expected < figures["reconstruction_error"] < 1.02 * expected
    label = torch.zeros(len(evaluator.test.images), 0)
    assert figures["code_log_density"] == pytest.approx(
        float(family.log_likelihood(to_unit(evaluator.test.images), label).mean()), rel=1e-4
    )


def test_a_family_without_encoder_and_likelihood_has_only_a_cost(evaluator: Evaluator) -> None:
    assert properties.properties(GAN(GANConfig()), manifest_with(), evaluator.test).keys() == {"cost"}


@pytest.mark.slow
def test_the_classification_accuracy_score_is_high_for_real_labels_and_low_for_shuffled_ones(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cas, "EPOCHS", 6)
    train = evaluator.train
    shuffled = train.labels[torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))]
    real, wrong = (
        cas.classification_accuracy_score(train.images, labels, evaluator.test)[figures.CAS]
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
    assert contradictions({**figures, "seeds": seeds}, PUBLISHED) == {name: PUBLISHED[name] for name in contradicted}


class Brightness:
    """A stand-in for Inception: its only feature is the mean brightness of an image."""

    digest = "of-a-file"

    def __init__(self, path: Path) -> None:
        assert path == Path("net.pth")

    def features(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))[:, None]


def metrics_of(weights: Path, name: str = "shapes") -> dict[str, Any]:
    return store.read_manifest(weights / "weights" / name).metrics


def test_fid_is_measured_printed_and_kept_in_the_manifest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "Inception", Brightness)
    assert run("--write", "--inception", "net.pth") == 0
    fid = metrics_of(tmp_path)["fid"]
    assert fid > 0
    assert f"FID, in Inception's features: {fid:.4f}" in capsys.readouterr().out
    assert metrics_of(tmp_path)["judge"]["name"] == "report"
    assert run("--write") == 0
    assert metrics_of(tmp_path)["fid"] == fid


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
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cas, "SAMPLES", 200)
    monkeypatch.setattr(cas, "EPOCHS", 1)
    assert run("--write", "--cas", "-n", "200", "--seeds", "0", "1") == 0
    first = metrics_of(tmp_path)
    assert first["seeds"] == [0, 1]
    assert first["interval"]["cnn_fd"] > 0
    assert 0 <= first["classification_accuracy_score"] <= 1
    assert 0 <= first["real"]["classification_accuracy_score"] <= 1
    capsys.readouterr()
    again = ("-n", "200", "--seeds", "0", "1")
    assert run(*again) == 0
    assert "matches the manifest" in capsys.readouterr().out
    assert run("-n", "150", "--seeds", "0", "1") == 0
    assert "not compared" in capsys.readouterr().out
    altered = {**first, "recall": first["recall"] + 2 * first["interval"]["recall"] + 0.01}
    store.annotate(tmp_path / "weights" / "shapes", metrics=altered)
    assert run(*again) == 1
    assert f"recall {first['recall']:.4f}: the manifest has {altered['recall']:.4f}" in capsys.readouterr().out
    assert run("--write", "-n", "200") == 0
    second = metrics_of(tmp_path)
    assert "interval" not in second
    for before, after in ((first, second), (first["real"], second["real"])):
        assert before["classification_accuracy_score"] == after["classification_accuracy_score"]
    assert {"cost", "reconstruction_error", "samples", "judge"} <= second.keys()
    printed = capsys.readouterr().out
    assert f"{second['cnn_fd']:.4f}" in printed
    assert "nats" in printed


def test_the_figures_of_a_data_set_name_its_judge_and_the_images_that_were_compared(
    run: Run, splits: dict[str, Dataset], judges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--write") == 0
    out = capsys.readouterr().out
    assert (
        "shapes: 300 images against the 120 of the test split, by the judge 'report' of shapes (95.00% accurate)" in out
    )
    assert "shapes-CNN-FD" in out
    written = metrics_of(tmp_path)
    path = classifier.find("report", splits["train"].digest, judges)
    assert written["judge"] == {"name": "report", "digest": classifier.read(path).digest, "data": "shapes"}
    assert (written["samples"], written["test_images"]) == (300, 120)
    assert not written.keys() & {"mnist_cnn_fd", "worst_digit", "accuracy_by_digit"}
    assert len(written["accuracy_by_class"]) == 3
    assert written["worst_class"] == min(written["accuracy_by_class"])
    assert len(written["real"]["accuracy_by_class"]) == 3
    json.loads(json.dumps(written), parse_constant=pytest.fail)


def test_pictures_show_the_worst_samples_and_the_nearest_training_images(run: Run, tmp_path: Path) -> None:
    assert run("--worst", str(tmp_path / "worst"), "--nearest", str(tmp_path / "nearest"), "--judge", "report") == 0
    with Image.open(tmp_path / "worst" / "shapes.png") as picture:
        assert (picture.size, picture.mode) == ((160, 36), "RGB")
    with Image.open(tmp_path / "nearest" / "shapes.png") as picture:
        assert (picture.size, picture.mode) == ((160, 96), "RGB")


@pytest.mark.parametrize(
    ("flags", "given", "message"),
    [
        (
            ["--steps", "1"],
            "folder",
            "no judge 'select' for shapes; train it with `drawbridge judge --data folder --size 12x16 --channels 3`",
        ),
        ([], "shapes", "'shapes' is no data set"),
        (["--judge", "nowhere"], "folder", "nowhere is no judge"),
        (["--judge", str(classifier.ROOT / "report")], "folder", "it judges images of 1x28x28, not of 3x12x16"),
        (["--judge", "none", "--worst", "worst"], "folder", "--worst needs a judge of shapes"),
    ],
)
def test_missing_data_or_judges_are_one_clear_line(
    flags: list[str],
    given: str,
    message: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*flags, given=given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_images_than_those_of_training_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = store.read_manifest(tmp_path / "weights" / "shapes")
    path = tmp_path / "weights" / "shapes" / store.MANIFEST
    path.write_text(path.read_text().replace(manifest.dataset["digest"], "0" * 64))
    assert run() == 2
    assert "folder holds other images than shapes was trained on" in capsys.readouterr().err


def test_the_data_is_read_as_the_export_recorded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    for i, image in enumerate(shapes(200, 0).images):
        path = folder / COLOURS[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    reading = ["--size", "8x16", "--channels", "1", "--held-out", "0.3", "--resize", "pad", "--background", "black"]
    assert main(["fit", "pca", "--code", "4", "--data", str(folder), *reading]) == 0
    assert main(["export", "runs/pca"]) == 0
    train, test = inputs.load_data("pca", store.read_manifest(Path("weights/pca")), str(folder), None)
    assert train.images.shape[1:] == (1, 8, 16)
    assert 0.2 < len(test.images) / 200 < 0.4


def test_all_names_the_weights_whose_data_is_missing_and_measures_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = store.read_manifest(tmp_path / "weights" / "shapes")
    family = store.load(tmp_path / "weights" / "shapes")[0]
    lost = dataclasses.replace(manifest, dataset={**manifest.dataset, "digest": "0" * 64})
    store.save(tmp_path / "weights" / "lost", family, lost, b"")
    assert run("--all") == 2
    assert "--data is for weights of one data set" in capsys.readouterr().err
    load = data.load
    monkeypatch.setattr(data, "load", lambda _, *arguments: load("folder", *arguments))
    flags = ["--weights", str(tmp_path / "weights"), "--seeds", "0", "--judge", "none"]
    assert main(["evaluate", "--all", *flags]) == 1
    out, error = capsys.readouterr()
    assert error.startswith("not measured: lost: shapes holds other images")
    assert "shapes: 300 images against the 120 of the test split, without a judge" in out


def test_without_a_judge_the_figures_that_need_none_are_measured(run: Run, tmp_path: Path) -> None:
    assert run("--judge", "none", "--write") == 0
    written = metrics_of(tmp_path)
    assert figures.WITHOUT_JUDGE.keys() <= written.keys()
    assert not written.keys() & {"cnn_fd", "kid", "precision", "accuracy", "label_entropy", "judge"}
    assert 0 < written["sharpness"] < 0.5  # a mixture of few directions is blurred


def test_inception_judges_data_that_has_no_judge(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "Inception", Brightness)
    assert run("--write", "--inception", "net.pth", "--judges", str(tmp_path)) == 0
    written = metrics_of(tmp_path)
    assert written["judge"] == {"name": "inception", "digest": "of-a-file"}
    assert {"fid", "kid", "precision", "coverage", "sharpness"} <= written.keys()
    assert not written.keys() & {"cnn_fd", "accuracy", "label_entropy"}
    assert "in Inception's features" in capsys.readouterr().out


def test_a_judge_of_other_data_knows_no_labels(splits: dict[str, Dataset]) -> None:
    train, test = splits["train"], splits["test"]
    unlabelled = data.make("faces", train.images, torch.full_like(train.labels, -1), ())
    evaluator = Evaluator(brief("report", train, epochs=1), unlabelled, test)
    assert evaluator.judge["data"] == "shapes"
    measured = evaluator.real_baseline(100)
    assert "cnn_fd" in measured
    assert not measured.keys() & {"accuracy", "label_entropy", "worst_class"}


def test_few_test_images_have_no_frechet_distance(
    splits: dict[str, Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    judge = brief("report", splits["train"], epochs=1)
    evaluator = Evaluator(judge, splits["train"], shapes(60, 1))
    measured = evaluator.real_baseline(200)
    assert "cnn_fd" not in measured
    assert {"kid", "precision", "accuracy"} <= measured.keys()
    table.print_head(evaluator, 200)
    assert "no Frechet distance: it needs more images than the 80 features" in capsys.readouterr().out


def test_a_class_that_was_never_requested_has_no_accuracy(splits: dict[str, Dataset]) -> None:
    evaluator = Evaluator(brief("report", splits["train"], epochs=1), splits["train"], splits["test"])
    two = splits["train"].labels < 2
    measured = evaluator.measure(SampleSet(splits["train"].images[two], splits["train"].labels[two]))
    assert measured["accuracy_by_class"][2] is None
    assert measured["worst_class"] == min(measured["accuracy_by_class"][:2])


def test_a_model_that_copies_is_found_and_one_that_generates_is_not(splits: dict[str, Dataset]) -> None:
    train = splits["train"]
    evaluator = Evaluator(None, train, splits["test"])
    spread = torch.randn(train.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (train.images + 3 * spread).clamp(0, 255).to(torch.uint8)
    half = torch.cat((noisy[:30], shapes(270, 5).images))
    shares = [evaluator.measure(SampleSet(images, None))["copies"] for images in (noisy, half, shapes(300, 2).images)]
    assert shares[0] == 1
    assert shares[1] == pytest.approx(0.1, abs=0.03)
    assert shares[1] > evaluator.nearest.copying > shares[2]


def test_the_limit_of_copies_grows_where_few_test_images_determine_it(splits: dict[str, Dataset]) -> None:
    many, few = (Evaluator(None, splits["train"], shapes(count, 3)).nearest.copying for count in (1000, 30))
    assert many == nearest.COPYING
    assert few > 0.15


def test_a_copy_is_shown_above_the_image_that_it_copies(splits: dict[str, Dataset]) -> None:
    train = splits["train"]
    images = shapes(100, 4).images.clone()
    images[50:60] = train.images[200:210]
    pairs = Evaluator(None, train, splits["test"]).nearest.pairs(images)
    assert pairs.shape == (80, 3, 12, 16)
    assert torch.equal(pairs[:10], pairs[10:20])
    assert {image.numpy().tobytes() for image in pairs[:10]} == {x.numpy().tobytes() for x in images[50:60]}
    assert torch.equal(pairs[40:50], images[:10])
    assert torch.equal(pairs[60:70], images[10:20])


def test_large_images_are_compared_at_32_pixels() -> None:
    assert points(torch.zeros(2, 3, 48, 64, dtype=torch.uint8)).shape == (2, 3 * 24 * 32)
    assert points(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 784)


def test_few_test_images_and_fewer_samples_than_classes_are_refused(
    run: Run, splits: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(splits, "test", shapes(5, 1))
    assert run() == 2
    assert "folder has 5 test images; evaluation needs 10" in capsys.readouterr().err


def test_data_with_more_classes_than_samples_is_refused(evaluator: Evaluator) -> None:
    many = dataclasses.replace(evaluator.train, classes=tuple(map(str, range(200))))
    args = parser().parse_args(["evaluate", "x", "-n", "150"])
    with pytest.raises(ConfigError, match="use at least 200, one for each class"):
        evaluate._compare(args, {}, sources.Weights(Path("nowhere")), Evaluator(None, many, evaluator.test), {})


def test_samples_without_a_label_have_figures_of_their_own(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", "200", "--seeds", "0", "1")
    assert run("--write", *flags) == 0
    before = metrics_of(tmp_path)
    assert run("--unlabelled", "--write", *flags) == 0
    after = metrics_of(tmp_path)
    unlabelled = after.pop("unlabelled")
    assert after == before
    assert unlabelled["cnn_fd"] != before["cnn_fd"]
    assert "accuracy" not in unlabelled
    assert "cost" not in unlabelled
    capsys.readouterr()
    assert run("--unlabelled", *flags) == 0
    assert "matches the manifest" in capsys.readouterr().out
    assert run("--write", *flags) == 0
    assert metrics_of(tmp_path)["unlabelled"] == unlabelled


def test_only_models_that_can_do_without_their_labels_have_figures_without_a_label(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cgan", "vae"):
        assert main(["evaluate", name, "--weights", str(weights), "--unlabelled"]) == 2
        assert f"--unlabelled: {name} has no samples without a label" in capsys.readouterr().err
