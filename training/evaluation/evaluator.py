"""The figures of samples, measured against a test split."""

import dataclasses
from typing import Any

from torch import Tensor

from models.pixels import to_unit
from training import metrics
from training.classifier import Classifier
from training.data import Dataset
from training.evaluation.nearest import Nearest
from training.figures import MNIST, OF_NEAREST, WITHOUT_JUDGE, distance_title, keys, short_name
from training.samples import distance
from training.sources import SampleSet

WORST = 30
"""Samples in a picture of the worst, ten per row."""
SHORT_TITLES = {"sliced_wasserstein": "sliced_w2", "nearest_training_ratio": "nearest"}
"""Titles on the terminal of keys that are too long for its columns."""


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
        self.nearest = Nearest(train.images, test.images)
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
        figures |= {"duplicates": metrics.duplicates(samples.images), **self.nearest.figures(samples.images)}
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
