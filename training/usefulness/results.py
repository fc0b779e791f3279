"""The results of all runs, as JSON, a table and sentences that say whether draws help."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from training import metrics
from training.usefulness.experiment import BATCH, KINDS

COMPARED = {"": ("real", "both"), "beside augmentation, they": ("real_augmented", "both_augmented")}
"""Kinds without draws and with them, whose accuracies are compared seed by seed."""


@dataclass(frozen=True)
class Results:
    """Test accuracies of the classifiers of one model."""

    model: str
    digest: str
    """Of the model's weights."""
    data: str
    classes: int
    train_images: int
    """Those that have a label."""
    test_images: int
    draws: int
    updates: int
    seeds: tuple[int, ...]
    per_label: tuple[int | None, ...]
    """Real images of each label, ascending; None has all."""
    images: tuple[int, ...]
    """Real images in all, by size."""
    accuracy: dict[str, list[list[float]]]
    """By kind, size and seed; of draws alone, which have no size, by seed in one list."""

    def to_json(self) -> bytes:
        """The file that `read` reads."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def read(path: Path) -> Results:
    """The results in a file."""
    fields = json.loads(path.read_text())
    return Results(**{**fields, **{key: tuple(fields[key]) for key in ("seeds", "per_label", "images")}})


def heading(results: Results) -> str:
    """The line above a table: model, data, numbers of draws, updates and seeds."""
    return (
        f"`{results.model}` on {results.data}: test accuracy in % on {results.test_images:,} images, with "
        f"{results.draws:,} draws, {results.updates:,} updates of {BATCH} images for every classifier, "
        f"{len(results.seeds)} seeds"
    )


def table(results: Results) -> str:
    """Accuracies in percent, ± half their 95 % intervals, as Markdown: a row for each kind, a column for each size."""
    sizes = [f"{n:,} of each label" if n else f"all {results.train_images:,}" for n in results.per_label]
    lines = ["| trained on | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for kind, accuracies in results.accuracy.items():
        cells = [_percent(*mean_and_half(values)) for values in accuracies]
        lines.append(f"| {KINDS[kind].title} | " + " | ".join(cells * (len(sizes) // len(cells))) + " |")
    return "\n".join(lines)


def sentences(results: Results) -> list[str]:
    """For each size one sentence that says whether draws help, then one about draws alone."""
    lines = []
    for size, per_label in enumerate(results.per_label):
        count = f"{per_label:,} real images of each label" if per_label else f"all {results.train_images:,} real images"
        clauses = [f"{how} {_verdict(results, size, *kinds)}".lstrip() for how, kinds in COMPARED.items()]
        lines.append(f"With {count}, draws of `{results.model}` {'; '.join(clauses)}.")
    alone, real = (mean_and_half(results.accuracy[kind][-1]) for kind in ("draws", "real"))
    lines.append(
        f"Draws alone reach {_percent(*alone)} %, "
        f"{'all ' if results.per_label[-1] is None else ''}{results.images[-1]:,} real images {_percent(*real)} %."
    )
    return lines


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half its 95 % interval, by Student's t."""
    return statistics.fmean(values), metrics.interval(values)


def _verdict(results: Results, size: int, without: str, with_draws: str) -> str:
    """Whether draws help, and by how many points; the same seeds are compared, which have the same real images."""
    before, after = results.accuracy[without][size], results.accuracy[with_draws][size]
    gain, half = mean_and_half([b - a for a, b in zip(before, after, strict=True)])
    figures = (
        f"{100 * statistics.fmean(before):.2f} % becomes {100 * statistics.fmean(after):.2f} %: "
        f"{_signed(gain)} ± {100 * half:.2f} points"
    )
    if gain - half > 0:
        return f"help ({figures})"
    if gain + half < 0:
        return f"do not help, but harm ({figures})"
    return f"do not help ({figures}, which includes zero)"


def _signed(share: float) -> str:
    """A share in percent, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _percent(share: float, half: float) -> str:
    return f"{100 * share:.2f} ± {100 * half:.2f}"
