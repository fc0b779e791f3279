"""Sample quality: images as the service generates them, compared with the test split, if possible by a judge."""

import argparse
import dataclasses
import math
import pickle
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import families, store
from models.base import Family, invert, run_schedule
from models.batch_invariant import LARGE_BATCH
from models.pixels import to_uint8, to_unit
from models.store import Manifest
from training import classifier, data, files, metrics
from training.classifier import Classifier, JudgedData
from training.config import ConfigError
from training.data import DataError, Dataset
from training.export import READING
from training.figures import (
    CAS,
    MNIST,
    OF_NEAREST,
    OF_WEIGHTS,
    PROPERTIES,
    UNLABELLED,
    WITHOUT_JUDGE,
    distance_title,
    keys,
    short_name,
)
from training.samples import distance, grid_png
from training.sources import BATCH, SampleSet, Service, Source, Weights, sample_exported

MIN_SAMPLES = 100
SAMPLES = 10_000
"""Samples per seed, unless there are fewer training images: then as many, as in the row of real images."""
MIN_TEST_IMAGES = 10
RECONSTRUCTED = 1000
"""Test images that are encoded and decoded."""
COMPARED = 1000
"""Samples, and test images, that are compared with all training images."""
COMPARED_SIZE = 32
"""Pixels of a side to which larger images are reduced before that."""
COPYING = 0.05
"""A model copies if this share of its samples is nearer to training images than 99 % of the test images are."""
CAS_SAMPLES, CAS_EPOCHS = 60_000, 3
"""Samples that the classifier of the classification accuracy score is trained on, and passes over them."""
WORST = 30
"""Samples in a picture of the worst, ten per row."""
PAIRS = 40
"""Samples in a picture of the nearest training images, ten per row."""
SHORT_TITLES = {"sliced_wasserstein": "sliced_w2", "nearest_training_ratio": "nearest"}
"""Titles on the terminal of keys that are too long for its columns."""
NO_JUDGE = "none"
"""The value of `--judge` that measures without one."""


class Evaluator:
    """Measures samples against a test split in the features of a judge.

    The judge is `classifier`, or without one Inception; without both, only figures that need no judge are measured.
    With both, figures include the literature's FID.
    """

    def __init__(
        self,
        classifier: Classifier | None,
        train: Dataset,
        test: Dataset,
        inception: metrics.Inception | None = None,
    ) -> None:
        self.classifier, self.train, self.test, self.inception = classifier, train, test, inception
        self.keys = keys(train.digest)
        self.real = classifier.features_and_logits(test.images)[0] if classifier else None
        self.real_inception = inception.features(test.images) if inception else None
        self.pixels = _pixels(train.images)
        test_distance = metrics.nearest(self.pixels, _pixels(test.images[:COMPARED]))[0]
        self.test_distance = test_distance.mean()
        self.near = test_distance.kthvalue(metrics.nearest_percent(len(test_distance))).values
        self.copying = max(COPYING, metrics.chance_of_copies(len(test_distance)))
        self.sharpness = metrics.sharpness(test.images)

    @property
    def knows_labels(self) -> bool:
        """Whether the classifier was trained on this data, so that its classes are the data's."""
        return self.classifier is not None and self.classifier.data.digest == self.train.digest

    @property
    def judge(self) -> dict[str, str]:
        """The judge in a manifest: `name`, `digest`, and `data` that it was trained on, unless that is MNIST."""
        if self.classifier:
            judged = self.classifier.data
            of = {} if judged.digest == MNIST else {"data": short_name(judged.name)}
            return {"name": self.classifier.name, "digest": self.classifier.digest, **of}
        return {"name": "inception", "digest": self.inception.digest} if self.inception else {}

    @property
    def columns(self) -> dict[str, str]:
        """The titles of the main figures, by their keys."""
        keys: tuple[str, ...] = ("kid", "precision", "recall", "density", "coverage")
        if self.classifier:
            title = distance_title(self.classifier.data.name)
            keys += ("accuracy", self.keys.worst) if self.knows_labels else ()
            return {self.keys.distance: title, **{key: key for key in keys}}
        overlap = {"fid": "FID", **{key: key for key in keys}} if self.inception else {}
        return {**overlap, **{key: SHORT_TITLES.get(key, key) for key in WITHOUT_JUDGE}}

    def measure(self, samples: SampleSet) -> dict[str, Any]:
        """All figures of `samples`."""
        figures: dict[str, Any] = {}
        if self.classifier:
            features, probabilities = self.classifier.features_and_logits(samples.images)
            figures = _overlap(self.real, features, self.keys.distance)
            if self.knows_labels:
                figures |= self._of_labels(samples, probabilities.argmax(1))
        elif self.inception:
            figures = _overlap(self.real_inception, self.inception.features(samples.images), "fid")
        figures |= {"duplicates": metrics.duplicates(samples.images), **self._of_nearest(samples)}
        figures |= {
            "sliced_wasserstein": distance(to_unit(samples.images), self.test),
            "sharpness": metrics.sharpness(samples.images) / self.sharpness,
        }
        if self.classifier and self.inception:
            figures |= _frechet(self.real_inception, self.inception.features(samples.images), "fid")
        return figures

    def _of_labels(self, samples: SampleSet, predicted: Tensor) -> dict[str, Any]:
        """Entropy of the predicted classes, and where labels were requested, how often they were recognised.

        A class that was never requested has None.
        """
        classes = len(self.train.classes)
        figures: dict[str, Any] = {"label_entropy": metrics.entropy(predicted, classes)}
        requested = samples.requested_labels
        if requested is None:
            return figures
        correct = (predicted == requested).double()
        asked = [correct[requested == label] for label in range(classes)]
        by_class = [float(part.mean()) if len(part) else None for part in asked]
        worst = min(share for share in by_class if share is not None)
        return figures | {
            "accuracy": float(correct[requested >= 0].mean()),
            self.keys.worst: worst,
            self.keys.by_class: by_class,
        }

    def _of_nearest(self, samples: SampleSet) -> dict[str, float]:
        """Figures of the distance from the first samples to the nearest training image."""
        distances = metrics.nearest(self.pixels, _pixels(samples.images[:COMPARED]))[0]
        return {
            "nearest_training_ratio": float(distances.mean() / self.test_distance),
            "copies": float((distances <= self.near).double().mean()),
        }

    def least_confident(self, samples: SampleSet) -> Tensor:
        """The samples with the lowest probability of the requested label, or of any if none was requested.

        [30, C, H, W], lowest first.
        """
        assert self.classifier is not None
        probabilities = self.classifier.features_and_logits(samples.images)[1]
        confidence = (
            probabilities.amax(1)
            if samples.requested_labels is None
            else probabilities.gather(1, samples.requested_labels[:, None])[:, 0]
        )
        return samples.images[confidence.argsort()[:WORST]]

    def beside_nearest(self, samples: SampleSet) -> Tensor:
        """Rows of ten samples, each followed by the row of their nearest training images: [80, C, H, W].

        The first half are the samples nearest to a training image, nearest first; the others are the first ones.
        """
        distances, index = metrics.nearest(self.pixels, _pixels(samples.images[:COMPARED]))
        chosen = torch.cat((distances.argsort()[: PAIRS // 2], torch.arange(PAIRS // 2)))
        rows = zip(samples.images[chosen].split(10), self.train.images[index[chosen]].split(10), strict=True)
        return torch.cat([images for pair in rows for images in pair])

    def real_baseline(self, count: int) -> dict[str, Any]:
        """Figures of `count` real training images, without those of the nearest training image."""
        figures = self.measure(SampleSet(self.train.images[:count], self.train.labels[:count]))
        return {name: value for name, value in figures.items() if name not in OF_NEAREST}


def _overlap(real: Tensor | None, features: Tensor, key: str) -> dict[str, float]:
    """Figures of features [N, D] against those of the test split [M, D]; the Frechet distance has this key."""
    assert real is not None
    return {
        **_frechet(real, features, key),
        "kid": metrics.kernel_distance(real, features),
        **dataclasses.asdict(metrics.coverage(real, features)),
    }


def _frechet(real: Tensor | None, features: Tensor, key: str) -> dict[str, float]:
    """The Frechet distance of features [N, D] and [M, D], if both have more rows than columns.

    Otherwise a covariance is singular, and the distance depends more on the number of images than on the images.
    """
    assert real is not None
    enough = min(len(real), len(features)) > real.shape[1]
    return {key: metrics.frechet_distance(real, features)} if enough else {}


def _pixels(images: Tensor) -> Tensor:
    """Images [N, C, H, W] uint8 as points [N, D], sides above 32 pixels reduced by averaging.

    Larger images would cost more time and memory, and differ in details that do not make them other pictures.
    """
    factor = -(-max(images.shape[2:]) // COMPARED_SIZE)
    if factor == 1:
        return images.flatten(1).float()
    parts = [F.avg_pool2d(part.float(), factor, ceil_mode=True).flatten(1) for part in images.split(BATCH)]
    return torch.cat(parts)


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
    """Mean squared difference between x [B, C, H, W] and its reconstruction: [B]."""
    options = {**store.defaults(family, manifest), **family.inversion}
    schedule = family.schedule(options["steps"], options["sampler"])
    zero = torch.zeros(len(x), dtype=torch.int64)
    back = run_schedule(family, invert(family, x, label), schedule, options["guidance"], zero, zero, label)
    return ((to_uint8(back).double() - to_uint8(x).double()) / 255).square().mean((1, 2, 3))


def classification_accuracy_score(images: Tensor, labels: Tensor, test: Dataset) -> dict[str, float]:
    """Test accuracy of a classifier that is trained on these images alone (CAS: Ravuri & Vinyals 2019)."""
    samples = data.make("samples", images, labels, test.classes)
    net = classifier.train("select", samples, CAS_EPOCHS, log=lambda _: None)
    trained = Classifier("cas", net, 0.0, "", JudgedData.of(samples))
    return {CAS: classifier.class_accuracies(trained, test)["test_accuracy"]}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over one run per seed; of several, `interval` has half of each 95 % interval."""
    columns = {key: torch.tensor([run[key] for run in runs], dtype=torch.float64) for key in runs[0]}
    means: dict[str, Any] = {key: values.mean(0).tolist() for key, values in columns.items()}
    if len(runs) > 1:
        means["interval"] = {key: metrics.interval(v.tolist()) for key, v in columns.items() if v.dim() == 1}
    return means


def command(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Measure weights, print a table per data set, and compare it with the manifests; return 1 if a figure differs.

    `options` override the manifests' defaults: `steps`, `sampler`, `guidance`. With `--write` the figures are written
    into the manifests instead of compared. With `--all`, weights whose data or judge is missing are named, and make the
    status 1.
    """
    _check(args, options)
    source: Source = Service(args.against) if args.against else Weights(args.weights)
    by_data = _by_data(source, source.names() if args.all else args.names)
    if args.unlabelled:
        by_data = _sampled_without_labels(by_data, args.names)
    inception = _inception(args.inception) if args.inception else None
    if args.data and len(by_data) > 1:
        raise ConfigError("--data is for weights of one data set; name only those")
    differs = False
    for manifests in by_data:
        try:
            evaluator = _evaluator(args, options, manifests, inception)
        except (ConfigError, DataError) as error:
            if not args.all or len(by_data) == 1:
                raise
            print(f"not measured: {', '.join(manifests)}: {error}", file=sys.stderr)
            differs = True
        else:
            differs |= _compare(args, options, source, evaluator, manifests)
    return int(differs)


def _by_data(source: Source, names: list[str]) -> list[dict[str, Manifest]]:
    """The manifests of these models, those of one data set together."""
    found: dict[tuple[str, tuple[int, ...]], dict[str, Manifest]] = {}
    for name in names:
        manifest = source.manifest(name)
        found.setdefault((manifest.dataset.get("digest", ""), manifest.data_shape), {})[name] = manifest
    return list(found.values())


def _sampled_without_labels(by_data: list[dict[str, Manifest]], named: list[str]) -> list[dict[str, Manifest]]:
    """Those of the models that take labels and can do without. Raises ConfigError if `named` names another one."""
    found = [
        {name: manifest for name, manifest in manifests.items() if _has_unlabelled_samples(manifest)}
        for manifests in by_data
    ]
    if others := set(named) - {name for manifests in found for name in manifests}:
        raise ConfigError(f"--unlabelled: {min(others)} has no samples without a label beside those with one; omit it")
    return [manifests for manifests in found if manifests]


def _has_unlabelled_samples(manifest: Manifest) -> bool:
    return bool(manifest.classes) and families.get(manifest.family).unconditional


def _evaluator(
    args: argparse.Namespace,
    options: dict[str, Any],
    manifests: dict[str, Manifest],
    inception: metrics.Inception | None,
) -> Evaluator:
    """An evaluator for weights of one data set. Raises ConfigError or DataError if its data or judge is missing."""
    name, manifest = next(iter(manifests.items()))
    train, test = load_data(name, manifest, args.data, args.data_root)
    judge = _find_judge(args, options, train)
    known = judge is not None and judge.data.digest == train.digest
    if args.worst and not known:
        raise ConfigError(f"--worst needs a judge of {short_name(train.name)}; omit it")
    if args.cas:
        classifier.check(train, test)
    return Evaluator(judge, train, test, inception)


def load_data(name: str, manifest: Manifest, given: str | None, root: Path | None) -> tuple[Dataset, Dataset]:
    """The training and test images of weights `name`, from the path `given` or where they were in training.

    Those of other data than MNIST are shuffled, because folders have them by class. Raises ConfigError if they are not
    the images of the manifest.
    """
    path, options = given or manifest.dataset["name"], _reading(manifest)
    try:
        train, test = (data.load(path, root, split, options) for split in ("train", "test"))
    except DataError as error:
        advice = "" if given else f"; --data names the data of {name}"
        raise ConfigError(f"{error}{advice}") from None
    if train.digest != manifest.dataset.get("digest"):
        raise ConfigError(f"{path} holds other images than {name} was trained on; name those with --data")
    if len(test.images) < MIN_TEST_IMAGES:
        raise ConfigError(f"{path} has {len(test.images)} test images; evaluation needs {MIN_TEST_IMAGES}")
    return (train, test) if train.digest == MNIST else (_shuffled(train), _shuffled(test))


def _reading(manifest: Manifest) -> data.Options:
    """How the images of the weights' data are read."""
    channels, *size = manifest.data_shape
    reading = {key: manifest.dataset[key] for key in READING if key in manifest.dataset}
    return data.Options.from_json({**reading, "size": size, "channels": channels})


def _shuffled(dataset: Dataset) -> Dataset:
    """The same images in another, fixed order; the digest stays that of the data."""
    order = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(dataset, images=dataset.images[order], labels=dataset.labels[order])


def _find_judge(args: argparse.Namespace, options: dict[str, Any], train: Dataset) -> Classifier | None:
    """The judge that `--judge` names, or the data's own; None for data without labels, and with `--judge none`.

    Raises ConfigError if labelled data has none, unless Inception stands in for it.
    """
    wanted = args.judge or ("select" if options else "report")
    if wanted == NO_JUDGE:
        return None
    channels, height, width = train.images.shape[1:]
    if wanted not in classifier.NAMES:
        judge = classifier.read(Path(wanted))
        if judge.data.shape != (channels, height, width):
            shape = "x".join(map(str, judge.data.shape))
            raise ConfigError(f"--judge {wanted}: it judges images of {shape}, not of {channels}x{height}x{width}")
        return judge
    found = classifier.find(wanted, train.digest, args.judges)
    if found is None and len(train.labels.unique()) > 1 and not args.inception:
        raise ConfigError(
            f"no judge {wanted!r} for {short_name(train.name)}; train it with `drawbridge judge --data "
            f"{args.data or train.name} --size {height}x{width} --channels {channels}`, name another by --judge PATH, "
            f"or measure without one by --judge {NO_JUDGE}"
        )
    return classifier.read(found) if found else None


def _compare(
    args: argparse.Namespace,
    options: dict[str, Any],
    source: Source,
    evaluator: Evaluator,
    manifests: dict[str, Manifest],
) -> bool:
    """Print the figures of weights of one data set, and write them or return whether any differs from its manifest."""
    train, test = evaluator.train, evaluator.test
    count = args.n or min(SAMPLES, max(MIN_SAMPLES, len(train.images)))
    if count < len(train.classes):
        raise ConfigError(f"-n {count}: use at least {len(train.classes)}, one for each class")
    baseline = evaluator.real_baseline(count)
    if args.cas:
        baseline |= classification_accuracy_score(train.images, train.labels, test)
    _print_head(evaluator, count)
    _print_row("real", baseline, evaluator.columns)
    differs = False
    for name, manifest in manifests.items():
        figures = _measure(args, options, source, evaluator, name, count)
        _print_row(name, figures, evaluator.columns)
        _print_copies(figures["copies"], evaluator.copying)
        former = manifest.metrics
        if args.write and args.unlabelled:
            store.annotate(args.weights / name, metrics={**former, UNLABELLED: figures})
        elif args.write:
            real = {**_expensive(former.get("real", {})), **baseline}
            store.annotate(args.weights / name, metrics={**_expensive(former), **figures, "real": real})
        elif not options:
            differs |= _print_comparison(figures, former.get(UNLABELLED, {}) if args.unlabelled else former)
    return differs


def _measure(
    args: argparse.Namespace,
    options: dict[str, Any],
    source: Source,
    evaluator: Evaluator,
    name: str,
    count: int,
) -> dict[str, Any]:
    """All figures of one model, as a manifest holds them; also writes the pictures of `--worst` and `--nearest`."""
    unlabelled: bool = args.unlabelled
    sets = [source.sample(name, seed, count, unlabelled=unlabelled, **options) for seed in args.seeds]
    figures = over_seeds([evaluator.measure(samples) for samples in sets])
    if not args.against and not unlabelled:
        figures |= properties(*store.load(args.weights / name), evaluator.test, **options)
    if args.cas and sets[0].requested_labels is not None:
        samples = source.sample(name, args.seeds[0], CAS_SAMPLES, **options)
        assert samples.requested_labels is not None
        figures |= classification_accuracy_score(samples.images, samples.requested_labels, evaluator.test)
    if args.worst:
        store.write_atomic(args.worst / f"{name}.png", grid_png(to_unit(evaluator.least_confident(sets[0]))))
    if args.nearest:
        pairs = evaluator.beside_nearest(sets[0])
        store.write_atomic(args.nearest / f"{name}.png", grid_png(to_unit(pairs), rows=len(pairs) // 10))
    judge = {"judge": evaluator.judge} if evaluator.judge else {}
    return {**figures, "samples": count, "test_images": len(evaluator.test.images), "seeds": args.seeds, **judge}


def _check(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raise ConfigError if flags exclude each other, WeightsError or OSError if a directory cannot be written to."""
    if not (args.names or args.all):
        raise ConfigError("name the weights to measure, or give --all")
    if args.write and options:
        raise ConfigError("--write is for the weights' own defaults; omit --steps, --sampler and --guidance")
    if args.write and args.judge and Path(args.judge).name == "select":
        raise ConfigError("--write is for figures by the classifier `report`, which selects nothing; omit --judge")
    if args.write and args.against:
        raise ConfigError("--write is for local weights; omit --against")
    if args.n is not None and args.n < MIN_SAMPLES:
        raise ConfigError(f"-n {args.n}: use at least {MIN_SAMPLES}; fewer samples say nothing about a distribution")
    for directory in (args.worst, args.nearest):
        if directory:
            files.require_writable(directory)
    if args.write:
        for name in store.list_weights(args.weights) if args.all else args.names:
            store.read_manifest(args.weights / name)
            files.require_writable(args.weights / name)


def _inception(path: Path) -> metrics.Inception:
    """The Inception network with the weights in `path`. Raises ConfigError if it cannot be built."""
    try:
        return metrics.Inception(path)
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
    return {key: figures[key] for key in (CAS, "fid", UNLABELLED) if key in figures}


def _print_head(evaluator: Evaluator, count: int) -> None:
    """Print what is compared, by which judge, what the judge cannot measure, and the titles of the columns."""
    name, tests = short_name(evaluator.train.name), len(evaluator.test.images)
    by, features = "without a judge", None
    if judge := evaluator.classifier:
        by = f"by the judge {judge.name!r} of {short_name(judge.data.name)} ({judge.accuracy:.2%} accurate)"
        features = evaluator.real
    elif evaluator.inception:
        by, features = "in Inception's features", evaluator.real_inception
    print(f"{name}: {count:,} images against the {tests:,} of the test split, {by}", flush=True)
    if features is not None and min(count, tests) <= features.shape[1]:
        print(f"no Frechet distance: it needs more images than the {features.shape[1]} features; KID needs fewer")
    print(f"{'':>13}" + "".join(f"{title:>{_width(title)}}" for title in evaluator.columns.values()))


def _print_row(name: str, figures: dict[str, Any], columns: dict[str, str]) -> None:
    texts = {key: f"{figures[key]:.4f}" if key in figures else "" for key in columns}
    print(f"{name:>13}" + "".join(f"{texts[key]:>{_width(title)}}" for key, title in columns.items()), flush=True)
    _print_properties({key: value for key, value in figures.items() if key not in columns})


def _width(title: str) -> int:
    """Characters of a column."""
    return max(13, len(title) + 1)


def _print_copies(share: float, limit: float) -> None:
    """Print whether a model copies."""
    verdict = f"the model copies (limit {limit:.1%}; --nearest shows them)" if share > limit else "no sign of copying"
    print(f"{'':>13} {share:.1%} are as near to a training image as the nearest 1 % of the test images: {verdict}")


def _print_comparison(figures: dict[str, Any], published: dict[str, Any]) -> bool:
    """Print whether the figures match the manifest's; return whether any differs."""
    if any(figures.get(key) != published.get(key) for key in ("samples", "judge")) or "interval" not in published:
        print(f"{'':>13} not compared: the manifest's figures are of one seed, other samples or another judge")
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
