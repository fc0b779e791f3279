"""The picture of a membership test: the distances, and the images nearest to a draw, each above that draw."""

import torch
from torch import Tensor

from models.pixels import image_grid, to_pixels, to_unit
from training import metrics
from training.lab import plots
from training.privacy.membership import MODEL, choose, compared, pixels
from training.privacy.results import Results

PAIRS = 12
"""Of training images, and of held-out images, with their nearest draws."""


def draw(results: Results, train: Tensor, test: Tensor, draws: Tensor) -> bytes:
    """A PNG: histograms of the pixel distances, then the nearest training images and the nearest held-out images.

    If both look equally like their draws, the draws are similar to all images of this kind rather than copies.
    """
    count = compared(train, test)
    fig, axes = plots.figure(3, 1, width=10, height=2.6)
    (histogram,), *pictures = axes
    groups = {"training": (train, plots.ORANGE), "held-out": (test, plots.BLUE)}
    for (name, (images, colour)), (panel,) in zip(groups.items(), pictures, strict=True):
        pairs, distances = nearest_pairs(choose(images, count), draws)
        histogram.hist(
            distances.numpy(), bins=60, histtype="step", linewidth=2, density=True, label=f"{name} images", color=colour
        )
        panel.imshow(image_grid(to_pixels(to_unit(pairs)).numpy(), PAIRS), cmap="gray", vmin=0, vmax=255)
        height = images.shape[2]
        panel.set_yticks([height / 2, 3 * height / 2], [f"{name} image", "nearest draw"])
        panel.set_xticks([])
        panel.grid(visible=False)
        panel.set_title(f"the {PAIRS} of {count:,} {name} images that are nearest to a draw")
    auc = results.tests[MODEL]["pixels"].auc
    histogram.set(xlabel="distance of pixels to the nearest draw", yticks=[], xlim=(0, None))
    histogram.set_title(f"{results.model} on {results.data}: {results.draws:,} draws, AUC {auc:.3f}")
    histogram.legend()
    return plots.png(fig)


def nearest_pairs(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The PAIRS images nearest to a draw, nearest first, followed by these draws [2 PAIRS, C, H, W]; and the distances
    of all images [N], in pixels."""
    distances, index = metrics.nearest(pixels(draws), pixels(images))
    order = distances.argsort()[:PAIRS]
    return torch.cat((images[order], draws[index[order]])), distances
