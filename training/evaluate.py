"""Sample quality: images as the service generates them, compared with the test split by a classifier's features."""

import argparse
import dataclasses
import math
import pickle
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import store
from models.base import Family, invert, run_schedule
from models.batch_invariant import LARGE_BATCH
from models.pixels import to_uint8, to_unit
from models.store import Manifest
from training import classifier, data, files, metrics
from training.classifier import Classifier
from training.config import ConfigError
from training.data import Dataset
from training.samples import grid_png
from training.sources import BATCH, SampleSet, Service, Source, Weights, sample_exported

MIN_SAMPLES = 100
RECONSTRUCTED = 1000
"""Test images that are encoded and decoded."""
CAS_SAMPLES, CAS_EPOCHS = 60_000, 3
"""Samples that the classifier of the classification accuracy score is trained on, and passes over them."""
WORST = 30
"""Samples in a picture of the worst, ten per row."""
CAS = "classification_accuracy_score"
PROPERTIES = {
    "fid": "FID, in Inception's features",
    "test_elbo": "test ELBO, nats per image",
    "code_log_density": "log-density of the test images' codes, nats",
    "reconstruction_error": "mean squared reconstruction error",
    CAS: "classification accuracy score (60,000 samples)",
}
OF_WEIGHTS = ("test_elbo", "code_log_density", "reconstruction_error")
"""Figures that are measured on the weights themselves, and so do not depend on seeds."""
COLUMNS = ("mnist_cnn_fd", "kid", "precision", "recall", "density", "coverage", "accuracy", "worst_digit")


class Evaluator:
    """Measures samples against a test split in the features of `classifier`.

    With `fid`, figures include the literature's FID.
    """

    def __init__(
        self, classifier: Classifier, train: Dataset, test: Dataset, fid: metrics.InceptionDistance | None = None
    ) -> None:
        self.classifier, self.train, self.test, self.fid = classifier, train, test, fid
        self.real = classifier.features_and_logits(test.images)[0]
        self.pixels = train.images.flatten(1).float()
        self.test_distance = metrics.nearest(self.pixels, test.images[:1000].flatten(1).float()).mean()
        if fid:
            fid.set_reference(test.images)

    def measure(self, samples: SampleSet) -> dict[str, Any]:
        """All figures of `samples`."""
        features, probabilities = self.classifier.features_and_logits(samples.images)
        predicted = probabilities.argmax(1)
        overlap = metrics.coverage(self.real, features)
        distance = metrics.nearest(self.pixels, samples.images[:1000].flatten(1).float()).mean()
        figures = {
            "mnist_cnn_fd": metrics.frechet_distance(self.real, features),
            "kid": metrics.kernel_distance(self.real, features),
            **dataclasses.asdict(overlap),
            "label_entropy": metrics.entropy(predicted, 10),
            "duplicates": metrics.duplicates(samples.images),
            "nearest_training_ratio": float(distance / self.test_distance),
        }
        if self.fid:
            figures["fid"] = self.fid.distance(samples.images)
        if samples.requested_labels is not None:
            correct = (predicted == samples.requested_labels).double()
            digits = [float(correct[samples.requested_labels == digit].mean()) for digit in range(10)]
            figures |= {"accuracy": float(correct.mean()), "worst_digit": min(digits), "accuracy_by_digit": digits}
        return figures

    def least_confident(self, samples: SampleSet) -> Tensor:
        """The samples with the lowest probability of the requested digit, or of any digit if none was requested.

        [30, 1, 28, 28], lowest first.
        """
        probabilities = self.classifier.features_and_logits(samples.images)[1]
        confidence = (
            probabilities.amax(1)
            if samples.requested_labels is None
            else probabilities.gather(1, samples.requested_labels[:, None])[:, 0]
        )
        return samples.images[confidence.argsort()[:WORST]]

    def real_baseline(self, count: int) -> dict[str, Any]:
        """Figures of `count` real training images, without the distance to the nearest training image."""
        figures = self.measure(SampleSet(self.train.images[:count], self.train.labels[:count]))
        return {name: value for name, value in figures.items() if name != "nearest_training_ratio"}


@torch.inference_mode()
def properties(family: Family, manifest: Manifest, test: Dataset, **options: Any) -> dict[str, Any]:
    """Figures of the weights themselves rather than of samples, those that the family has.

    `cost`: see `cost`. `test_elbo` or `code_log_density`: mean of `log_likelihood` over the test images, in nats.
    `reconstruction_error`: mean squared difference of pixels in [0, 1] over the first test images.
    """
    figures: dict[str, Any] = {"cost": cost(family, manifest, **options)}
    label = family.one_hot(test.labels)
    if family.likelihood:
        parts = zip(to_unit(test.images).split(500), label.split(500), strict=True)
        nats = torch.cat([family.log_likelihood(x, y) for x, y in parts])
        figures["test_elbo" if family.likelihood == "bound" else "code_log_density"] = float(nats.double().mean())
    if family.encodes:
        parts = zip(to_unit(test.images[:RECONSTRUCTED]).split(BATCH), label[:RECONSTRUCTED].split(BATCH), strict=True)
        errors = torch.cat([_reconstruction_errors(family, manifest, x, y) for x, y in parts])
        figures["reconstruction_error"] = float(errors.double().mean())
    return figures


def cost(family: Family, manifest: Manifest, **options: Any) -> dict[str, Any]:
    """Cost of sampling: multiplications per image, and images per second of CPU time."""
    # A smaller batch may be padded. The fused attention kernel is not counted, so it is switched off.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sample_exported(family, manifest, seed=0, count=LARGE_BATCH, **options)
    times = []
    for seed in range(3):
        started_at = time.process_time()
        sample_exported(family, manifest, seed, BATCH, **options)
        times.append(time.process_time() - started_at)
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    speed = BATCH / statistics.median(times)
    macs = counter.get_total_flops() // 2 // LARGE_BATCH
    return {"macs": macs, "images_per_core_second": speed, "cpu": processor}


def _reconstruction_errors(family: Family, manifest: Manifest, x: Tensor, label: Tensor) -> Tensor:
    """Mean squared difference between x [B, 1, 28, 28] and its reconstruction: [B]."""
    options = {**store.defaults(family, manifest), **family.inversion}
    schedule = family.schedule(options["steps"], options["sampler"])
    zero = torch.zeros(len(x), dtype=torch.int64)
    back = run_schedule(family, invert(family, x, label), schedule, options["guidance"], zero, zero, label)
    return ((to_uint8(back).double() - to_uint8(x).double()) / 255).square().mean((1, 2, 3))


def classification_accuracy_score(images: Tensor, labels: Tensor, test: Dataset) -> dict[str, float]:
    """Test accuracy of a classifier that is trained on these images alone (CAS: Ravuri & Vinyals 2019)."""
    samples = data.make("samples", images, labels, test.classes)
    net = classifier.train("select", samples, CAS_EPOCHS, log=lambda _: None)
    predicted = Classifier("cas", net, 0.0, "").features_and_logits(test.images)[1].argmax(1)
    return {CAS: float((predicted == test.labels).double().mean())}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over one run per seed; of several, `interval` has half of each 95 % interval."""
    columns = {key: torch.tensor([run[key] for run in runs], dtype=torch.float64) for key in runs[0]}
    means: dict[str, Any] = {key: values.mean(0).tolist() for key, values in columns.items()}
    if len(runs) > 1:
        means["interval"] = {key: metrics.interval(v.tolist()) for key, v in columns.items() if v.dim() == 1}
    return means


def command(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Measure weights, print a table, and compare it with the manifests; return 1 if a figure differs.

    `options` override the manifests' defaults: `steps`, `sampler`, `guidance`. With `--write` the figures are written
    into the manifests instead of compared.
    """
    _check(args, options)
    fid = _inception(args.inception) if args.inception else None
    source: Source = Service(args.against) if args.against else Weights(args.weights)
    measured_by = classifier.load(args.judge or ("select" if options else "report"))
    train, test = (data.load("mnist", args.data_root, split) for split in ("train", "test"))
    evaluator = Evaluator(measured_by, train, test, fid)
    baseline = evaluator.real_baseline(args.n)
    if args.cas:
        baseline |= classification_accuracy_score(train.images, train.labels, test)
    print(f"{args.n} images against the 10,000 of the test split, by the classifier {measured_by.name!r}", flush=True)
    print("".join(f"{title:>13}" for title in ("", *COLUMNS)))
    _print_row("real", baseline)
    differs = False
    for name in source.names() if args.all else args.names:
        figures = _measure(args, options, source, evaluator, name)
        _print_row(name, figures)
        if args.write:
            former = store.read_manifest(args.weights / name).metrics
            real = {**_expensive(former.get("real", {})), **baseline}
            store.annotate(args.weights / name, metrics={**_expensive(former), **figures, "real": real})
        elif not options:
            differs |= _print_comparison(figures, source.published_metrics(name))
    return int(differs)


def _measure(
    args: argparse.Namespace, options: dict[str, Any], source: Source, evaluator: Evaluator, name: str
) -> dict[str, Any]:
    """All figures of one model, as a manifest holds them; with `--worst` also writes the picture of the worst."""
    sets = [source.sample(name, seed, args.n, **options) for seed in args.seeds]
    figures = over_seeds([evaluator.measure(samples) for samples in sets])
    if not args.against:
        figures |= properties(*store.load(args.weights / name), evaluator.test, **options)
    if args.cas and "accuracy" in figures:
        samples = source.sample(name, args.seeds[0], CAS_SAMPLES, **options)
        assert samples.requested_labels is not None
        figures |= classification_accuracy_score(samples.images, samples.requested_labels, evaluator.test)
    if args.worst:
        store.write_atomic(args.worst / f"{name}.png", grid_png(to_unit(evaluator.least_confident(sets[0]))))
    judge = {"name": evaluator.classifier.name, "digest": evaluator.classifier.digest}
    return {**figures, "samples": args.n, "seeds": args.seeds, "judge": judge}


def _check(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raise ConfigError if flags exclude each other, WeightsError or OSError if `--write` or `--worst` cannot write."""
    if not (args.names or args.all):
        raise ConfigError("name the weights to measure, or give --all")
    if args.write and options:
        raise ConfigError("--write is for the weights' own defaults; omit --steps, --sampler and --guidance")
    if args.write and args.judge == "select":
        raise ConfigError("--write is for figures by the classifier `report`, which selects nothing; omit --judge")
    if args.write and args.against:
        raise ConfigError("--write is for local weights; omit --against")
    if args.n < MIN_SAMPLES:
        raise ConfigError(f"-n {args.n}: use at least {MIN_SAMPLES}; fewer samples say nothing about a distribution")
    if args.worst:
        files.require_writable(args.worst)
    if args.write:
        for name in store.list_weights(args.weights) if args.all else args.names:
            store.read_manifest(args.weights / name)
            files.require_writable(args.weights / name)


def _inception(path: Path) -> metrics.InceptionDistance:
    """FID with the Inception weights in `path`. Raises ConfigError if it cannot be built."""
    try:
        return metrics.InceptionDistance(path)
    except ImportError:
        raise ConfigError("--inception needs torch-fidelity; run `pip install torch-fidelity`") from None
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"--inception {path}: {' '.join(str(error).split())[:200]}") from None


def contradictions(figures: dict[str, Any], published: dict[str, Any]) -> dict[str, float]:
    """The published values of the figures that differ from `published` by more than chance.

    Figures of samples may differ by half the 95 % interval, by more with other seeds than the published ones; figures
    of the weights themselves by one thousandth.
    """
    factor = 1.0
    if figures["seeds"] != published["seeds"]:
        factor = math.sqrt(1 + len(published["seeds"]) / len(figures["seeds"]))
    # Devices round differently, and a pixel may be off by one grey level: hence the thousandth.
    slack = {name: factor * half + 1e-3 * abs(published[name]) for name, half in published["interval"].items()}
    slack |= {name: 1e-3 * abs(published[name]) for name in OF_WEIGHTS if name in published}
    return {
        name: published[name]
        for name, limit in slack.items()
        if name in figures and abs(figures[name] - published[name]) > limit
    }


def _expensive(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that take long, are measured only on request, and stay valid for the same weights."""
    return {key: figures[key] for key in (CAS, "fid") if key in figures}


def _print_row(name: str, figures: dict[str, Any]) -> None:
    cells = (f"{figures[column]:13.4f}" if column in figures else f"{'':>13}" for column in COLUMNS)
    print(f"{name:>13}" + "".join(cells), flush=True)
    _print_properties(figures)


def _print_comparison(figures: dict[str, Any], published: dict[str, Any]) -> bool:
    """Print whether the figures match the manifest's; return whether any differs."""
    if any(figures[key] != published.get(key) for key in ("samples", "judge")) or "interval" not in published:
        print(f"{'':>13} not compared: the manifest's figures are of one seed, other samples or another classifier")
        return False
    differing = contradictions(figures, published)
    lines = [f"{name} {figures[name]:.4f}: the manifest has {value:.4f}" for name, value in differing.items()]
    for line in lines or ["matches the manifest"]:
        print(f"{'':>13} {line}", flush=True)
    return bool(differing)


def _print_properties(figures: dict[str, Any]) -> None:
    lines = [f"{title}: {figures[key]:.4f}" for key, title in PROPERTIES.items() if key in figures]
    if "cost" in figures:
        millions, speed = figures["cost"]["macs"] / 1e6, figures["cost"]["images_per_core_second"]
        lines.append(f"{millions:,.1f} M multiplications per image, {speed:,.0f} images per second and core")
    for line in lines:
        print(f"{'':>13} {line}", flush=True)
