"""Filters: which drawn images a data set keeps. They import training, and so need its extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drawbridge.dataset import DatasetError
from drawbridge.dataset.conditions import Condition
from models.nearest import points
from models.pixels import channels_first
from models.store import Manifest, WeightsError
from training import classifier, metrics
from training.classifier import Classifier
from training.config import ConfigError
from training.evaluation.inputs import load_data
from training.evaluation.nearest import Nearest
from training.figures import short_name

JUDGE = "select"
"""The judge that filters: the one that is for choices, so that the other can measure what was chosen."""


class Filter(Protocol):
    """A rule that keeps some of the images of a class."""

    description: dict[str, Any]
    """What determines which images it keeps, for the parts and the data card; `filter` is its name."""

    def keeps(self, images: Tensor, label: int) -> Tensor:
        """Whether to keep each of images [n, C, H, W] uint8: [n] bool."""


class ByJudge:
    """Keeps the images for whose label the data's judge gives probabilities that meet the conditions."""

    def __init__(self, conditions: Sequence[Condition], judge: Classifier) -> None:
        self.conditions, self.judge = conditions, judge
        self.description = {
            "filter": " and ".join(map(str, conditions)),
            "judge": judge.name,
            "judge_digest": judge.digest,
            "judge_accuracy": judge.accuracy,
        }

    def keeps(self, images: Tensor, label: int) -> Tensor:
        probabilities = self.judge.features_and_logits(images)[1]
        confidence = probabilities[:, label]
        others = torch.cat((probabilities[:, :label], probabilities[:, label + 1 :]), dim=1)
        values = {"confidence": confidence, "margin": confidence - others.max(1).values}
        kept = torch.ones(len(images), dtype=torch.bool)
        for condition in self.conditions:
            kept &= condition.holds(values)
        return kept


class NoCopies:
    """Keeps the images that are farther from every training image than the nearest 1 % of the test images are.

    This is the threshold of evaluation's figure `copies`: the Euclidean distance of pixels 0 to 255, of images reduced
    to 32 pixels a side.
    """

    def __init__(self, nearest: Nearest, data: str) -> None:
        self.points, self.near = nearest.points, nearest.near
        self.description = {"filter": "no copies", "data": data, "distance": round(float(nearest.near), 3)}

    def keeps(self, images: Tensor, label: int) -> Tensor:
        return metrics.nearest(self.points, points(images))[0] > self.near


def to_manifest(fields: dict[str, Any]) -> Manifest:
    """The manifest that a service describes. Raises DatasetError if the service is of another version."""
    try:
        return Manifest(**{**fields, "data_shape": tuple(fields["data_shape"]), "classes": tuple(fields["classes"])})
    except (TypeError, KeyError) as error:
        raise DatasetError(f"the service is of another version, whose manifests have other fields ({error})") from None


def by_judge(model: str, manifest: Manifest, conditions: Sequence[Condition]) -> ByJudge:
    """The filter of `--keep` with the judge of the model's data. Raises DatasetError if there is none."""
    name, digest = str(manifest.dataset.get("name")), str(manifest.dataset.get("digest"))
    try:
        found = classifier.find(JUDGE, digest)
        if found is None:
            raise DatasetError(
                f"--keep: no judge of {short_name(name)}, the data of {model}; train one in this directory with "
                "`drawbridge judge --data DATA`"
            )
        judge = classifier.read(found)
    except WeightsError as error:
        raise DatasetError(f"--keep: {error}") from None
    if judge.data.classes != manifest.classes or judge.data.shape != manifest.data_shape:
        raise DatasetError(f"--keep: the judge in {found} has other classes or image sizes than {model}")
    return ByJudge(conditions, judge)


def no_copies(model: str, manifest: Manifest, given: str | None, root: Path | None) -> NoCopies:
    """The filter of `--no-copies` with the model's data, from `given` or where it was in training.

    Raises DatasetError if the data is not there, or is other data.
    """
    try:
        train, test = load_data(model, manifest, given, root)
    except ConfigError as error:
        raise DatasetError(f"--no-copies: {error}") from None
    return NoCopies(Nearest(train.images, test.images), short_name(train.name))


def verdicts(filters: Sequence[Filter], images: NDArray[np.uint8], label: int) -> NDArray[np.uint8]:
    """What the filters say about images [n, H, W] or [n, H, W, 3]: 0 to keep one, else the number of a filter from 1.

    The first filter that drops an image is the one that counts.
    """
    result = np.zeros(len(images), np.uint8)
    tensor = channels_first(torch.from_numpy(images))
    for number, one in enumerate(filters, 1):
        dropped = ~one.keeps(tensor, label).numpy()
        result[dropped & (result == 0)] = number
    return result
