"""The distance from samples to the nearest training images, by which copies are found."""

import torch
from torch import Tensor

from models.nearest import points
from training import metrics

COMPARED = 1000
"""Samples, and test images, that are compared with all training images."""
COPYING = 0.05
"""A model copies if this share of its samples is nearer to training images than 99 % of the test images are."""
PAIRS = 40
"""Samples in a picture of the nearest training images, ten per row."""


class Nearest:
    """Compares samples with the training images, and the distances with those of the test images.

    All images are [N, C, H, W] uint8. A model copies if more than the share `copying` of its samples are copies.
    """

    def __init__(self, train: Tensor, test: Tensor) -> None:
        self.train, self.points = train, points(train)
        distances = metrics.nearest(self.points, points(test[:COMPARED]))[0]
        self.test_distance = distances.mean()
        self.near = distances.kthvalue(metrics.nearest_percent(len(distances))).values
        self.copying = max(COPYING, metrics.chance_of_copies(len(distances)))

    def figures(self, samples: Tensor) -> dict[str, float]:
        """Figures of the distance from the first samples to the nearest training image."""
        distances = metrics.nearest(self.points, points(samples[:COMPARED]))[0]
        return {
            "nearest_training_ratio": float(distances.mean() / self.test_distance),
            "copies": float((distances <= self.near).double().mean()),
        }

    def pairs(self, samples: Tensor) -> Tensor:
        """Rows of ten samples, each followed by the row of their nearest training images: [80, C, H, W].

        The first half are the samples nearest to a training image, nearest first; the others are the first ones.
        """
        distances, index = metrics.nearest(self.points, points(samples[:COMPARED]))
        chosen = torch.cat((distances.argsort()[: PAIRS // 2], torch.arange(PAIRS // 2)))
        rows = zip(samples[chosen].split(10), self.train[index[chosen]].split(10), strict=True)
        return torch.cat([images for pair in rows for images in pair])
