"""The names of figures in manifests, and how tables title and print them.

The distance of features is comparable only among samples that one judge measured against one data set. Its title
therefore has the judge's data in it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.store import Manifest

MNIST = "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c"
"""The digest of MNIST's training images."""
CAS = "classification_accuracy_score"
UNLABELLED = "unlabelled"
"""Key of the figures of samples without a label, of models that take labels and can do without."""
PROPERTIES = {
    "fid": "FID, in Inception's features",
    "test_elbo": "test ELBO, nats per image",
    "code_log_density": "log-density of the test images' codes, nats",
    "reconstruction_error": "mean squared reconstruction error",
    CAS: "classification accuracy score (60,000 samples)",
}
"""Titles of the figures that tables of samples have no column for."""
OF_WEIGHTS = ("test_elbo", "code_log_density", "reconstruction_error")
"""Figures that are measured on the weights themselves, and so do not depend on seeds."""
OF_NEAREST = ("nearest_training_ratio", "copies")
"""Figures of the distance to the nearest training image, which training images themselves do not have."""

Columns = dict[str, tuple[str, str]]
"""Title and format of figures, by their key in a manifest's metrics."""
WITHOUT_JUDGE: Columns = {
    "sliced_wasserstein": ("sliced Wasserstein", "{:.3f}"),
    "sharpness": ("sharpness", "{:.2f}"),
    "nearest_training_ratio": ("nearest training image", "{:.2f}"),
    "copies": ("copies", "{:.1%}"),
    "duplicates": ("duplicates", "{:.4f}"),
}
"""The figures that need no judge."""


@dataclass(frozen=True)
class Keys:
    """The keys of the figures that are named otherwise for MNIST than for other data."""

    distance: str
    worst: str
    by_class: str


MNIST_KEYS = Keys("mnist_cnn_fd", "worst_digit", "accuracy_by_digit")
OTHER_KEYS = Keys("cnn_fd", "worst_class", "accuracy_by_class")


def keys(digest: str) -> Keys:
    """The keys of figures of the data whose training images have this digest."""
    return MNIST_KEYS if digest == MNIST else OTHER_KEYS


def short_name(data: str) -> str:
    """What tables call a data set: its name, or the last part of its path."""
    return Path(data).resolve().name.removesuffix(".npz").removesuffix(".parquet") or data


def distance_title(judge_data: str) -> str:
    """The title of the distance in the features of a judge of this data: `MNIST-CNN-FD`, `emoji-CNN-FD`."""
    name = short_name(judge_data)
    return f"{'MNIST' if name == 'mnist' else name}-CNN-FD"


@dataclass(frozen=True)
class Group:
    """Weights whose figures compare: one judge measured them against one data set."""

    manifests: dict[str, Manifest]

    @property
    def first(self) -> Manifest:
        return next(iter(self.manifests.values()))

    @property
    def is_mnist(self) -> bool:
        return bool(self.first.dataset.get("digest") == MNIST)

    @property
    def data(self) -> str:
        return short_name(self.first.dataset["name"])

    @property
    def keys(self) -> Keys:
        return keys(self.first.dataset.get("digest", ""))

    @property
    def judge(self) -> dict[str, Any]:
        """`name`, `digest` and, except in MNIST's manifests, `data` of the judge; empty without one."""
        judge: dict[str, Any] = self.first.metrics.get("judge", {})
        return judge

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the data's classes; empty if no weights take a label."""
        return next((m.classes for m in self.manifests.values() if m.classes), ())

    @property
    def has_classifier(self) -> bool:
        """Whether the table has the columns of a classifier's figures."""
        return self.judge.get("name", "inception") != "inception"

    @property
    def distance_title(self) -> str:
        return distance_title(self.judge.get("data", "mnist"))

    @property
    def real(self) -> dict[str, Any]:
        """Figures of real training images, from the first manifest that has them."""
        return next((m.metrics["real"] for m in self.manifests.values() if "real" in m.metrics), {})

    @property
    def real_count(self) -> int:
        """The number of training images that the figures `real` are of."""
        samples = next((m.metrics["samples"] for m in self.manifests.values() if "real" in m.metrics), 10_000)
        return min(samples, self.first.dataset.get("images", samples))

    @property
    def heading(self) -> str:
        """The line above the table of a group; empty for MNIST, which the pages' own text is about."""
        if self.is_mnist:
            return ""
        shape = "x".join(str(size) for size in self.first.data_shape)
        against = f" against {count:,} test images" if (count := self.first.metrics.get("test_images")) else ""
        by = f", by the judge `{self.judge['name']}`" if self.judge else ""
        of = f" of {self.judge.get('data', 'mnist')}" if self.has_classifier else ""
        return f"On {self.data} ({shape}){against}{by}{of}:"

    @property
    def accuracies(self) -> Columns:
        title = "digit" if self.is_mnist else "class"
        return {
            "accuracy": (f"{'digit' if self.is_mnist else 'label'} accuracy", "{:.1%}"),
            self.keys.worst: (f"worst {title}", "{:.1%}"),
        }

    @property
    def main_columns(self) -> Columns:
        """The main figures of samples."""
        if not self.has_classifier:
            return {**self._inception_columns("{:.2f}"), **WITHOUT_JUDGE}
        return {
            self.keys.distance: (self.distance_title, "{:.3f}"),
            "precision": ("precision", "{:.2f}"),
            "recall": ("recall", "{:.2f}"),
            "coverage": ("coverage", "{:.2f}"),
            **self.accuracies,
        }

    @property
    def all_columns(self) -> Columns:
        """All figures of samples except those by class."""
        if not self.has_classifier:
            return {**self._inception_columns("{:.3f}"), **WITHOUT_JUDGE}
        return {
            self.keys.distance: (self.distance_title, "{:.3f}"),
            "kid": ("KID", "{:.5f}"),
            "precision": ("precision", "{:.3f}"),
            "recall": ("recall", "{:.3f}"),
            "density": ("density", "{:.3f}"),
            "coverage": ("coverage", "{:.3f}"),
            "label_entropy": ("label entropy, nats", "{:.3f}"),
            "nearest_training_ratio": ("nearest training image", "{:.2f}"),
            **({} if self.is_mnist else {"copies": WITHOUT_JUDGE["copies"]}),
            "duplicates": ("duplicates", "{:.4f}"),
            CAS: ("CAS", "{:.4f}"),
        }

    def _inception_columns(self, form: str) -> Columns:
        """The figures in Inception's features, where they were measured."""
        if not self.judge:
            return {}
        return {"fid": ("FID", "{:.3f}"), **{key: (key, form) for key in ("precision", "recall", "coverage")}}


def groups(manifests: dict[str, Manifest]) -> list[Group]:
    """The weights by data set and judge: MNIST's first, the others in the order of their first weights."""
    found: dict[tuple[str, str], dict[str, Manifest]] = {}
    for name, manifest in manifests.items():
        judge = manifest.metrics.get("judge", {}).get("digest", "")
        found.setdefault((manifest.dataset.get("digest", ""), judge), {})[name] = manifest
    return sorted((Group(members) for members in found.values()), key=lambda group: not group.is_mnist)


def figure(metrics: dict[str, Any], key: str, form: str, factor: float = 1) -> str:
    """One figure as text, with half its interval if the metrics have one; empty if they lack the figure."""
    if key not in metrics:
        return ""
    half = metrics.get("interval", {}).get(key)
    return form.format(factor * metrics[key]) + ("" if half is None else f" ± {form.format(factor * half)}")
