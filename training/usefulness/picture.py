"""The picture of a model's usefulness: test accuracy by the number of real images, one curve for each kind."""

import math
from typing import Any

from matplotlib.ticker import FixedLocator, NullLocator

from training.lab import plots
from training.usefulness.experiment import KINDS
from training.usefulness.results import Results, mean_and_half

STYLES: dict[str, dict[str, Any]] = {
    "real": {"color": plots.BLUE, "marker": "o"},
    "real_augmented": {"color": plots.BLUE, "marker": "s", "linestyle": "--"},
    "both": {"color": plots.ORANGE, "marker": "o"},
    "both_augmented": {"color": plots.ORANGE, "marker": "s", "linestyle": "--"},
}
TICKS = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def draw(results: Results) -> bytes:
    """A PNG with one curve for each kind, intervals as bars, and draws alone as a line across.

    The accuracy is on a logit scale, on which half the errors are as far at 99 % as at 90 %.
    """
    fig, axes = plots.figure(width=9, height=5.5)
    places = [math.log10(count) for count in results.images]
    bound = 0.5 / results.test_images
    clipped = [min(max(value, bound), 1 - bound) for sizes in results.accuracy.values() for v in sizes for value in v]
    for i, (kind, style) in enumerate(STYLES.items()):
        means, halves = zip(*map(mean_and_half, results.accuracy[kind]), strict=True)
        shifted = [place + 0.012 * (i - 1.5) for place in places]  # so that bars do not cover each other
        axes.errorbar(shifted, [_inside(m, bound) for m in means], halves, label=KINDS[kind].title, capsize=3, **style)
    mean, half = mean_and_half(results.accuracy["draws"][0])
    axes.axhline(_inside(mean, bound), color=plots.BLACK, linestyle=":", label=KINDS["draws"].title)
    axes.axhspan(_inside(mean - half, bound), _inside(mean + half, bound), color=plots.BLACK, alpha=0.1, linewidth=0)
    axes.set_yscale("logit")
    lowest, highest = (math.log(value / (1 - value)) for value in (min(clipped), max(clipped)))
    margin = 0.08 * (highest - lowest) + 0.05
    axes.set_ylim(*(1 / (1 + math.exp(-value)) for value in (lowest - margin, highest + margin)))
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_xticks(
        places, [f"{n:,}\nof each label" if n else f"all\n{results.train_images:,}" for n in results.per_label]
    )
    axes.set(xlabel="real images", ylabel="test accuracy", title=f"{results.model} on {results.data}: do draws help?")
    axes.legend(loc="lower right")
    return plots.png(fig)


def _inside(value: float, bound: float) -> float:
    """The nearest value that a logit scale can show."""
    return min(max(value, bound), 1 - bound)
