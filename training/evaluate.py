"""How good samples are: drawn as the service draws them, quantised, and held against the test split by a judge."""

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
from training import classifier, data, metrics
from training.classifier import Classifier
from training.config import ConfigError
from training.data import Dataset
from training.samples import grid_png
from training.sources import BATCH, SampleSet, Service, Source, Weights, sample_exported

MIN_SAMPLES = 100
RECONSTRUCTED = 1000
"""Test images that are taken through a code and back."""
TAUGHT, TAUGHT_EPOCHS = 60_000, 3
"""Samples that a classifier learns from, and how often it sees each."""
WORST = 30
"""Draws that a picture of the worst shows, ten in a row."""
CAS = "classification_accuracy_score"
PROPERTIES = {
    "fid": "FID, in Inception's features",
    "test_elbo": "test ELBO, nats an image",
    "code_log_density": "log-density of the test images' codes, nats",
    "reconstruction_error": "mean squared error of reconstruction",
    CAS: "test accuracy of a classifier taught by 60,000 draws",
}
OF_WEIGHTS = ("test_elbo", "code_log_density", "reconstruction_error")
COLUMNS = ("mnist_cnn_fd", "kid", "precision", "recall", "density", "coverage", "accuracy", "worst_digit")


class Evaluator:
    """The test split as a judge sees it, and what real images score against it.

    With the net of the literature's FID, figures have that too.
    """

    def __init__(
        self, judge_: Classifier, train: Dataset, test: Dataset, fid: metrics.InceptionDistance | None = None
    ) -> None:
        self.judge, self.train, self.test, self.fid = judge_, train, test, fid
        self.real = judge_.features_and_logits(test.images)[0]
        self.pixels = train.images.flatten(1).float()
        self.test_gap = metrics.nearest(self.pixels, test.images[:1000].flatten(1).float()).mean()
        if fid:
            fid.hold_against(test.images)

    def measure(self, drawn: SampleSet) -> dict[str, Any]:
        """Every figure of the samples."""
        features, probabilities = self.judge.features_and_logits(drawn.images)
        judged = probabilities.argmax(1)
        overlap = metrics.coverage(self.real, features)
        gap = metrics.nearest(self.pixels, drawn.images[:1000].flatten(1).float()).mean()
        figures = {
            "mnist_cnn_fd": metrics.frechet_distance(self.real, features),
            "kid": metrics.kernel_distance(self.real, features),
            **dataclasses.asdict(overlap),
            "label_entropy": metrics.entropy(judged, 10),
            "duplicates": metrics.duplicates(drawn.images),
            "nearest_training_ratio": float(gap / self.test_gap),
        }
        if self.fid:
            figures["fid"] = self.fid.distance(drawn.images)
        if drawn.requested_labels is not None:
            right = (judged == drawn.requested_labels).double()
            digits = [float(right[drawn.requested_labels == digit].mean()) for digit in range(10)]
            figures |= {"accuracy": float(right.mean()), "worst_digit": min(digits), "accuracy_by_digit": digits}
        return figures

    def least_confident(self, drawn: SampleSet) -> Tensor:
        """The draws that the judge is least sure of, of the digit asked for or of any, worst first: [30, 1, 28, 28]."""
        probabilities = self.judge.features_and_logits(drawn.images)[1]
        sure = (
            probabilities.amax(1)
            if drawn.requested_labels is None
            else probabilities.gather(1, drawn.requested_labels[:, None])[:, 0]
        )
        return drawn.images[sure.argsort()[:WORST]]

    def real_baseline(self, count: int) -> dict[str, Any]:
        """What `count` real training images score. How near they are to themselves says nothing and is left out."""
        figures = self.measure(SampleSet(self.train.images[:count], self.train.labels[:count]))
        return {name: value for name, value in figures.items() if name != "nearest_training_ratio"}


@torch.inference_mode()
def properties(family: Family, manifest: Manifest, test: Dataset, **asked: Any) -> dict[str, Any]:
    """What is measured of the weights themselves and not of their draws, as far as there is any of it.

    `test_elbo` or `code_log_density`: what `likelihood` gives for the test images, mean in nats.
    `reconstruction_error`: mean squared difference of pixels in [0, 1] over the first test images.
    """
    figures: dict[str, Any] = {"cost": cost(family, manifest, **asked)}
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


def cost(family: Family, manifest: Manifest, **asked: Any) -> dict[str, Any]:
    """What an image costs: multiplications, and how many one CPU core draws in a second that it has to itself."""
    # Fewer rows may be padded. The fused kernel of attention is not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sample_exported(family, manifest, seed=0, count=LARGE_BATCH, **asked)
    times = []
    for seed in range(3):
        begin = time.process_time()
        sample_exported(family, manifest, seed, BATCH, **asked)
        times.append(time.process_time() - begin)
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    speed = BATCH / statistics.median(times)
    macs = counter.get_total_flops() // 2 // LARGE_BATCH
    return {"macs": macs, "images_per_core_second": speed, "cpu": processor}


def _reconstruction_errors(family: Family, manifest: Manifest, x: Tensor, label: Tensor) -> Tensor:
    """Mean squared difference of x [B, 1, 28, 28] from what comes back of it: [B]."""
    asked = {**store.defaults(family, manifest), **family.inversion}
    plan = family.schedule(asked["steps"], asked["sampler"])
    zero = torch.zeros(len(x), dtype=torch.int64)
    back = run_schedule(family, invert(family, x, label), plan, asked["guidance"], zero, zero, label)
    return ((to_uint8(back).double() - to_uint8(x).double()) / 255).square().mean((1, 2, 3))


def classification_accuracy_score(images: Tensor, labels: Tensor, test: Dataset) -> dict[str, float]:
    """How well a classifier that has seen nothing but these images knows the test split (Ravuri & Vinyals 2019)."""
    samples = data.make("samples", images, labels, test.classes)
    pupil = Classifier("pupil", classifier.train("select", samples, TAUGHT_EPOCHS, log=lambda _: None), 0.0, "")
    return {CAS: float((pupil.features_and_logits(test.images)[1].argmax(1) == test.labels).double().mean())}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over a run for each seed; with several, `interval` has half the 95 % interval of each."""
    columns = {key: torch.tensor([run[key] for run in runs], dtype=torch.float64) for key in runs[0]}
    means: dict[str, Any] = {key: values.mean(0).tolist() for key, values in columns.items()}
    if len(runs) > 1:
        means["interval"] = {key: metrics.interval(v.tolist()) for key, v in columns.items() if v.dim() == 1}
    return means


def command(args: argparse.Namespace, plan: dict[str, Any]) -> int:
    """Measure weights, print a table, and hold it against the manifests: 1 where a figure was not found again.

    `plan` goes in place of the manifests' defaults: `steps`, `sampler`, `guidance`. With `--write` the figures go into
    the manifests.
    """
    _check(args, plan)
    fid = _inception(args.inception) if args.inception else None
    source: Source = Service(args.against) if args.against else Weights(args.weights)
    judge_ = classifier.load(args.judge or ("select" if plan else "report"))
    train, test = (data.load("mnist", args.data_root, split) for split in ("train", "test"))
    bench = Evaluator(judge_, train, test, fid)
    floor = bench.real_baseline(args.n)
    if args.taught:
        floor |= classification_accuracy_score(train.images, train.labels, test)
    print(f"{args.n} images against the 10,000 of the test split, by the judge {judge_.name!r}", flush=True)
    print("".join(f"{title:>13}" for title in ("", *COLUMNS)))
    _print_row("real", floor)
    contradicted = False
    for name in source.names() if args.all else args.names:
        figures = _measured(args, plan, source, bench, name)
        _print_row(name, figures)
        if args.write:
            former = store.read_manifest(args.weights / name).metrics
            real = {**_costly(former.get("real", {})), **floor}
            store.annotate(args.weights / name, metrics={**_costly(former), **figures, "real": real})
        elif not plan:
            contradicted |= _print_comparison(figures, source.published_metrics(name))
    return int(contradicted)


def _measured(
    args: argparse.Namespace, plan: dict[str, Any], source: Source, bench: Evaluator, name: str
) -> dict[str, Any]:
    """Every figure of one model, as a manifest holds it; writes the picture of the worst draws where it is wanted."""
    drawn = [source.sample(name, seed, args.n, **plan) for seed in args.seeds]
    figures = over_seeds([bench.measure(one) for one in drawn])
    if not args.against:
        figures |= properties(*store.load(args.weights / name), bench.test, **plan)
    if args.taught and "accuracy" in figures:
        lesson = source.sample(name, args.seeds[0], TAUGHT, **plan)
        assert lesson.requested_labels is not None
        figures |= classification_accuracy_score(lesson.images, lesson.requested_labels, bench.test)
    if args.worst:
        store.write_atomic(args.worst / f"{name}.png", grid_png(to_unit(bench.least_confident(drawn[0]))))
    judge_ = {"name": bench.judge.name, "digest": bench.judge.digest}
    return {**figures, "samples": args.n, "seeds": args.seeds, "judge": judge_}


def _check(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Raises ConfigError where the flags do not go together."""
    if not (args.names or args.all):
        raise ConfigError("name the weights to measure, or give --all")
    if args.write and plan:
        raise ConfigError("--write is for figures of the weights as served; leave out --steps, --sampler, --guidance")
    if args.write and args.judge == "select":
        raise ConfigError("--write is for figures by the judge that nothing was chosen by; leave out --judge")
    if args.write and args.against:
        raise ConfigError("--write is for the weights that lie here; leave out --against")
    if args.worst:
        args.worst.mkdir(parents=True, exist_ok=True)
    if args.n < MIN_SAMPLES:
        raise ConfigError(f"-n {args.n}: fewer than {MIN_SAMPLES} samples say nothing about a distribution")


def _inception(path: Path) -> metrics.InceptionDistance:
    """The net of the literature's FID. Raises ConfigError where it cannot be built from `path`."""
    try:
        return metrics.InceptionDistance(path)
    except ImportError:
        raise ConfigError("--inception needs torch-fidelity; `pip install torch-fidelity`") from None
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"--inception {path}: {' '.join(str(error).split())[:200]}") from None


def contradictions(figures: dict[str, Any], published: dict[str, Any]) -> dict[str, float]:
    """What `published` says of each figure that came out otherwise.

    Figures of draws may be as far off as half the 95 % interval, or more with other seeds than the published ones; what
    is measured of the weights themselves, by a thousandth.
    """
    wider = 1.0
    if figures["seeds"] != published["seeds"]:
        wider = math.sqrt(1 + len(published["seeds"]) / len(figures["seeds"]))
    # Devices round differently, and a pixel may be a shade off.
    slack = {name: wider * half + 1e-3 * abs(published[name]) for name, half in published["interval"].items()}
    slack |= {name: 1e-3 * abs(published[name]) for name in OF_WEIGHTS if name in published}
    return {
        name: published[name]
        for name, most in slack.items()
        if name in figures and abs(figures[name] - published[name]) > most
    }


def _costly(figures: dict[str, Any]) -> dict[str, Any]:
    """What stays true of the same weights, and is not measured each time for it takes long."""
    return {key: figures[key] for key in (CAS, "fid") if key in figures}


def _print_row(name: str, figures: dict[str, Any]) -> None:
    cells = (f"{figures[column]:13.4f}" if column in figures else f"{'':>13}" for column in COLUMNS)
    print(f"{name:>13}" + "".join(cells), flush=True)
    _print_properties(figures)


def _print_comparison(figures: dict[str, Any], published: dict[str, Any]) -> bool:
    """Say whether the figures are the manifest's, and return whether they contradict it."""
    if any(figures[key] != published.get(key) for key in ("samples", "judge")) or "interval" not in published:
        print(f"{'':>13} not compared: the manifest has figures of other draws, of one seed, or by another judge")
        return False
    found = contradictions(figures, published)
    lines = [f"{name} {figures[name]:.4f}: the manifest says {value:.4f}" for name, value in found.items()]
    for line in lines or ["as the manifest says"]:
        print(f"{'':>13} {line}", flush=True)
    return bool(found)


def _print_properties(figures: dict[str, Any]) -> None:
    lines = [f"{title}: {figures[key]:.4f}" for key, title in PROPERTIES.items() if key in figures]
    if "cost" in figures:
        cost = figures["cost"]
        lines.append(
            f"{cost['macs'] / 1e6:,.1f} M multiplications an image, {cost['images_per_core_second']:,.0f} a second"
        )
    for line in lines:
        print(f"{'':>13} {line}", flush=True)
