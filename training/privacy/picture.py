"""The picture of a membership test: the distances, and images nearest to a draw, each above that draw."""

import torch
from torch import Tensor

from models.pixels import image_grid, to_pixels, to_unit
from training import metrics
from training.data import Dataset
from training.lab import plots
from training.privacy.membership import MODEL, choose, compared, pixels
from training.privacy.results import Results

PAIRS = 12
"""Of training images, and of held-out images, with their nearest draws."""


def draw(results: Results, train: Dataset, test: Dataset, draws: Tensor) -> bytes:
    """A PNG: histograms of the pixel distances, then the nearest training images and the nearest held-out images.

    If both look equally like their draws, the draws are similar to all images of this kind rather than copies.
    """
    count = compared(train.images, test.images)
    fig, axes = plots.figure(3, 1, width=10, height=2.2)
    (histogram,), *pictures = axes
    groups = {"training": (train, plots.ORANGE), "held-out": (test, plots.BLUE)}
    for (name, (split, colour)), (panel,) in zip(groups.items(), pictures, strict=True):
        pairs, distances = nearest_pairs(choose(split.images, count), choose(split.labels, count), draws)
        histogram.hist(
            distances.numpy(), bins=60, histtype="step", linewidth=2, density=True, label=f"{name} images", color=colour
        )
        panel.imshow(image_grid(to_pixels(to_unit(pairs)).numpy(), PAIRS), cmap="gray", vmin=0, vmax=255)
        height = pairs.shape[2]
        panel.set_yticks([height / 2, 3 * height / 2], [f"{name} image", "nearest draw"])
        panel.set_xticks([])
        panel.grid(visible=False)
        panel.set_title(f"of each label the {name} images that are nearest to a draw")
    auc = results.tests[MODEL]["pixels"].auc
    histogram.set(xlabel="distance of pixels to the nearest draw", yticks=[], xlim=(0, None))
    histogram.set_title(f"{results.model} on {results.data}: {results.draws:,} draws, AUC {auc:.3f}")
    histogram.legend()
    return plots.png(fig)


def nearest_pairs(images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """PAIRS images near to a draw, followed by these draws [2 PAIRS, C, H, W]; and the distances of all images [N].

    The nearest image of each label comes first, then the second of each and so on, nearest first: otherwise simple
    pictures, such as ones among digits, would be all.
    """
    distances, index = metrics.nearest(pixels(draws), pixels(images))
    order = distances.argsort()
    place = torch.zeros_like(order)
    for label in labels.unique():
        of_label = labels[order] == label
        place[of_label] = torch.arange(int(of_label.sum()))
    chosen = order[place.argsort(stable=True)[:PAIRS]]
    return torch.cat((images[chosen], draws[index[chosen]])), distances
