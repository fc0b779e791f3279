"""How good samples are: drawn as the service draws them, quantised, and held against the test split by a judge."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models import store
from models.base import Family, draw
from models.pixels import to_uint8, to_unit
from models.store import Manifest
from training import data, judge, metrics
from training.config import ConfigError, check_plan
from training.data import Dataset
from training.judge import Judge

BATCH = 64
FEWEST = 100
COLUMNS = ("mnist_cnn_fd", "kid", "precision", "recall", "density", "coverage", "accuracy", "worst_digit")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Samples, and what they were asked to be."""

    images: Tensor
    """[N, 1, 28, 28] uint8."""
    asked: Tensor | None
    """[N] int64, or None where the model cannot be asked."""


class Bench:
    """The test split as a judge sees it, and what real images score against it."""

    def __init__(self, judge_: Judge, train: Dataset, test: Dataset) -> None:
        self.judge, self.train, self.test = judge_, train, test
        self.real = judge_.look(test.images)[0]
        self.pixels = train.images.flatten(1).float()
        self.test_gap = metrics.nearest(self.pixels, test.images[:1000].flatten(1).float()).mean()

    def measure(self, drawn: Drawn) -> dict[str, Any]:
        """Every figure of the samples."""
        features, probabilities = self.judge.look(drawn.images)
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
        if drawn.asked is not None:
            right = (judged == drawn.asked).double()
            digits = [float(right[drawn.asked == digit].mean()) for digit in range(10)]
            figures |= {"accuracy": float(right.mean()), "worst_digit": min(digits), "accuracy_by_digit": digits}
        return figures

    def floor(self, count: int) -> dict[str, Any]:
        """What `count` real training images score. How near they are to themselves says nothing and is left out."""
        figures = self.measure(Drawn(self.train.images[:count], self.train.labels[:count]))
        return {name: value for name, value in figures.items() if name != "nearest_training_ratio"}


@torch.inference_mode()
def sample(family: Family, manifest: Manifest, seed: int, count: int, **asked: Any) -> Drawn:
    """Images 0..count-1 of `seed` with the manifest's defaults, or what `asked` puts in their place.

    Digits take turns, where the model can be asked for one.
    """
    asked = {"steps": family.steps.default, **manifest.defaults, **asked}
    index = torch.arange(count)
    label = index % max(family.classes, 1)
    images = []
    for part in index.split(BATCH):
        seeds = torch.full_like(part, seed)
        images.append(to_uint8(draw(family, seeds, part, family.one_hot(label[part]), **asked)))
    return Drawn(torch.cat(images), label if family.classes else None)


@torch.inference_mode()
def likelihood(family: Family, test: Dataset) -> dict[str, float]:
    """Mean log-likelihood of the test images in nats, under a name that says whether it is a bound; or nothing."""
    if not family.likelihood:
        return {}
    parts = zip(test.images.split(500), test.labels.split(500), strict=True)
    nats = torch.cat([family.log_likelihood(to_unit(x), family.one_hot(label)) for x, label in parts])
    name = "test_elbo" if family.likelihood == "bound" else "test_log_density"
    return {name: float(nats.double().mean())}


def over_seeds(measure: Callable[[int], dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The mean of each figure over the seeds; with several, `interval` has half the 95 % interval of each."""
    runs = [measure(seed) for seed in seeds]
    columns = {key: torch.tensor([run[key] for run in runs], dtype=torch.float64) for key in runs[0]}
    means: dict[str, Any] = {key: values.mean(0).tolist() for key, values in columns.items()}
    if len(seeds) > 1:
        means["interval"] = {key: metrics.interval(v.tolist()) for key, v in columns.items() if v.dim() == 1}
    return means


def command(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Measure weights, print a table, and with `--write` put the figures into their manifests.

    `plan` goes in place of the manifests' defaults: `steps`, `sampler`, `guidance`.
    """
    names = store.listing(args.weights) if args.all else args.names
    if not names:
        raise ConfigError("name the weights to measure, or give --all")
    if args.write and plan:
        raise ConfigError("--write is for figures of the weights as served; leave out --steps, --sampler, --guidance")
    if args.write and args.judge != "report":
        raise ConfigError("--write is for figures by the judge that nothing was chosen by; leave out --judge")
    if args.n < FEWEST:
        raise ConfigError(f"-n {args.n}: fewer than {FEWEST} samples say nothing about a distribution")
    judge_ = judge.load(args.judge)
    bench = Bench(judge_, *(data.load("mnist", args.data_root, split) for split in ("train", "test")))
    floor = bench.floor(args.n)
    print(f"{args.n} images against the 10,000 of the test split, by the judge {judge_.name!r}", flush=True)
    print("".join(f"{title:>13}" for title in ("", *COLUMNS)))
    _print_row("real", floor)
    for name in names:
        family, manifest = store.load(args.weights / name)
        check_plan(family, plan)
        figures = over_seeds(lambda seed: bench.measure(sample(family, manifest, seed, args.n, **plan)), args.seeds)  # noqa: B023
        _print_row(name, figures)
        nats = likelihood(family, bench.test)
        for title, value in nats.items():
            print(f"{'':>13}{title}: {value:.2f} nats an image")
        if args.write:
            measured = {"samples": args.n, "seeds": args.seeds, "judge": {"name": judge_.name, "digest": judge_.digest}}
            store.annotate(args.weights / name, {**figures, **nats, **measured, "real": floor})


def _print_row(name: str, figures: dict[str, Any]) -> None:
    cells = (f"{figures[column]:13.4f}" if column in figures else f"{'':>13}" for column in COLUMNS)
    print(f"{name:>13}" + "".join(cells), flush=True)
