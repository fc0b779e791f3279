"""The table that `evaluate` prints."""

from typing import Any

from training.evaluation.evaluator import Evaluator
from training.evaluation.seeds import contradictions
from training.figures import PROPERTIES, short_name


def print_head(evaluator: Evaluator, count: int) -> None:
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


def print_row(name: str, figures: dict[str, Any], columns: dict[str, str]) -> None:
    texts = {key: f"{figures[key]:.4f}" if key in figures else "" for key in columns}
    print(f"{name:>13}" + "".join(f"{texts[key]:>{_width(title)}}" for key, title in columns.items()), flush=True)
    _print_properties({key: value for key, value in figures.items() if key not in columns})


def print_copies(share: float, limit: float) -> None:
    """Print whether a model copies."""
    verdict = f"the model copies (limit {limit:.1%}; --nearest shows them)" if share > limit else "no sign of copying"
    print(f"{'':>13} {share:.1%} are as near to a training image as the nearest 1 % of the test images: {verdict}")


def print_comparison(figures: dict[str, Any], published: dict[str, Any]) -> bool:
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


def _width(title: str) -> int:
    """Characters of a column."""
    return max(13, len(title) + 1)
