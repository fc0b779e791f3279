"""The command `usefulness`: trains classifiers with and without a model's draws, and says whether the draws help."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from models import store
from training import classifier, draws, files, pool
from training.config import ConfigError
from training.data import Dataset
from training.evaluation.inputs import load_data
from training.figures import short_name
from training.sources import Service, Source, Weights
from training.usefulness import experiment, results
from training.usefulness.experiment import KINDS, Run
from training.usefulness.results import Results

DRAWS = 10_000
PER_LABEL = (10, 100, 1000)
RUNS = Path("runs/usefulness/runs")
"""The accuracy of every run, by its key."""

_inputs: tuple[Dataset, Dataset, Dataset]
"""In a worker process: training images, test images and draws."""


def command(args: argparse.Namespace) -> int:
    """Run what has not been run before, write the results and their picture, and print what follows from them.

    Raises ConfigError if the model takes no label, or its data has none.
    """
    _check(args)
    source: Source = Service(args.against) if args.against else Weights(args.weights)
    manifest = source.manifest(args.model)
    if not manifest.classes:
        raise ConfigError(f"{args.model} takes no label, so its draws teach none; name a model that takes labels")
    if args.draws < len(manifest.classes):
        raise ConfigError(f"--draws: use at least {len(manifest.classes)}, one for each label")
    train, test = load_data(args.model, manifest, args.data, args.data_root)
    classifier.check(train, test)
    per_label = sizes(train, args.per_label)
    for directory in (args.output, RUNS):
        files.require_writable(directory)
    drawn = experiment.labelled_draws(draws.draw(source, args.model, args.draws), train.classes)
    accuracies = _accuracies(runs(per_label, args.seeds, args.updates), train, test, drawn)
    found = Results(
        model=args.model,
        digest=manifest.digest,
        data=short_name(train.name),
        classes=len(train.classes),
        train_images=int((train.labels >= 0).sum()),
        test_images=int((test.labels >= 0).sum()),
        draws=args.draws,
        updates=args.updates,
        seeds=tuple(args.seeds),
        per_label=tuple(per_label),
        images=tuple(len(experiment.subset(train.labels, n, args.seeds[0])) for n in per_label),
        accuracy={
            kind: [
                [accuracies[Run(kind, n, seed, args.updates)] for seed in args.seeds]
                for n in (per_label if KINDS[kind].real else [None])
            ]
            for kind in KINDS
        },
    )
    write(found, args.output)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for values that are not allowed."""
    if min(args.per_label) < 1:
        raise ConfigError("--per-label: use at least 1")
    if args.updates < 1:
        raise ConfigError("--updates: use at least 1")
    if len(set(args.seeds)) < max(2, len(args.seeds)):
        raise ConfigError("--seeds: use at least 2 different ones; one gives no interval")
    if min(args.seeds) < 0:
        raise ConfigError("--seeds: use 0 or more")


def sizes(train: Dataset, wanted: Sequence[int]) -> list[int | None]:
    """The numbers of real images per label, ascending; the last is None, which is all.

    Leaves out, with a line, those that no label has more images than, since they are all images.
    """
    most = int(train.labels[train.labels >= 0].bincount().max())
    if left_out := [n for n in sorted(set(wanted)) if n >= most]:
        numbers = ", ".join(f"{n:,}" for n in left_out)
        print(f"{numbers} of each label: left out, since no label has more than {most:,} images")
    return [*(n for n in sorted(set(wanted)) if n < most), None]


def runs(per_label: Sequence[int | None], seeds: Sequence[int], updates: int) -> list[Run]:
    """All runs: every kind, size and seed; draws alone have no size."""
    return [
        Run(name, n, seed, updates)
        for name, kind in KINDS.items()
        for n in (per_label if kind.real else [None])
        for seed in seeds
    ]


def write(found: Results, directory: Path) -> None:
    """Write NAME.json and NAME.png, and print the table and the sentences."""
    # Imported here because it imports matplotlib, which takes time that other commands need not spend.
    from training.usefulness import picture

    path = directory / f"{found.model}.json"
    store.write_atomic(path, found.to_json())
    store.write_atomic(path.with_suffix(".png"), picture.draw(found))
    print("\n".join(("", results.heading(found), "", results.table(found), "", *results.sentences(found), "")))
    print(f"{path}, {path.with_suffix('.png')}", flush=True)


def _accuracies(wanted: Sequence[Run], train: Dataset, test: Dataset, drawn: Dataset) -> dict[Run, float]:
    """The test accuracies of all runs: kept ones are read, others run, on all cores, and kept as soon as they end."""
    paths = {run: RUNS / f"{experiment.key(run, train, test, drawn)}.json" for run in wanted}
    found = {run: json.loads(path.read_text())["accuracy"] for run, path in paths.items() if path.exists()}
    missing = [run for run in wanted if run not in found]
    print(f"{len(wanted)} classifiers, of which {len(found)} are trained already", flush=True)
    started_at = time.monotonic()
    for done, (run, accuracy) in enumerate(_completed(missing, (train, test, drawn)), 1):
        store.write_atomic(paths[run], (json.dumps({"accuracy": accuracy}) + "\n").encode())
        found[run] = accuracy
        minutes = (time.monotonic() - started_at) / 60
        size = f", {run.per_label or 'all'} of each label" if KINDS[run.kind].real else ""
        print(
            f"{done} of {len(missing)}: {KINDS[run.kind].title}{size}, seed {run.seed}: {100 * accuracy:.2f} % "
            f"({minutes:.1f} min, about {minutes * (len(missing) / done - 1):.0f} left)",
            flush=True,
        )
    return found


def _completed(missing: Sequence[Run], inputs: tuple[Dataset, ...]) -> Iterator[tuple[Run, float]]:
    """Yield each run with its accuracy when it has ended."""
    arrays = [(one.name, one.images.numpy(), one.labels.numpy(), one.classes, one.digest) for one in inputs]
    yield from pool.completed(_run, {run: (run,) for run in missing}, _receive, (arrays,))


def _receive(arrays: Sequence[tuple[str, np.ndarray, np.ndarray, tuple[str, ...], str]]) -> None:
    """Keep the data sets that a worker process trains and tests with."""
    global _inputs
    train, test, drawn = (
        Dataset(name, torch.from_numpy(images), torch.from_numpy(labels), classes, digest)
        for name, images, labels, classes, digest in arrays
    )
    _inputs = train, test, drawn


def _run(run: Run) -> float:
    """The accuracy of one run, in a worker process."""
    return experiment.train_and_test(run, *_inputs)
