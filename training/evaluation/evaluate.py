"""The command `evaluate`: measures weights or a running service, and compares or writes their figures."""

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

from models import families, store
from models.pixels import to_unit
from models.store import Manifest
from training import classifier, files, metrics
from training.config import ConfigError
from training.data import DataError
from training.evaluation import cas, seeds, table
from training.evaluation.evaluator import Evaluator
from training.evaluation.inputs import find_judge, load_data
from training.evaluation.properties import properties
from training.figures import CAS, UNLABELLED, short_name
from training.samples import grid_png
from training.sources import Service, Source, Weights

MIN_SAMPLES = 100
SAMPLES = 10_000
"""Samples per seed, unless there are fewer training images: then as many, as in the row of real images."""


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
    judge = find_judge(args, options, train)
    known = judge is not None and judge.data.digest == train.digest
    if args.worst and not known:
        raise ConfigError(f"--worst needs a judge of {short_name(train.name)}; omit it")
    if args.cas:
        classifier.check(train, test)
    return Evaluator(judge, train, test, inception)


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
        baseline |= cas.classification_accuracy_score(train.images, train.labels, test)
    table.print_head(evaluator, count)
    table.print_row("real", baseline, evaluator.columns)
    differs = False
    for name, manifest in manifests.items():
        figures = _measure(args, options, source, evaluator, name, count)
        table.print_row(name, figures, evaluator.columns)
        table.print_copies(figures["copies"], evaluator.nearest.copying)
        former = manifest.metrics
        if args.write and args.unlabelled:
            store.annotate(args.weights / name, metrics={**former, UNLABELLED: figures})
        elif args.write:
            real = {**_expensive(former.get("real", {})), **baseline}
            store.annotate(args.weights / name, metrics={**_expensive(former), **figures, "real": real})
        elif not options:
            differs |= table.print_comparison(figures, former.get(UNLABELLED, {}) if args.unlabelled else former)
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
    figures = seeds.over_seeds([evaluator.measure(samples) for samples in sets])
    if not args.against and not unlabelled:
        figures |= properties(*store.load(args.weights / name), evaluator.test, **options)
    if args.cas and sets[0].requested_labels is not None:
        samples = source.sample(name, args.seeds[0], cas.SAMPLES, **options)
        assert samples.requested_labels is not None
        figures |= cas.classification_accuracy_score(samples.images, samples.requested_labels, evaluator.test)
    if args.worst:
        store.write_atomic(args.worst / f"{name}.png", grid_png(to_unit(evaluator.least_confident(sets[0]))))
    if args.nearest:
        pairs = evaluator.nearest.pairs(sets[0].images)
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


def _expensive(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that take long, are measured only on request, and stay valid for the same weights."""
    return {key: figures[key] for key in (CAS, "fid", UNLABELLED) if key in figures}
