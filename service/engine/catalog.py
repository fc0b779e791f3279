"""The catalog: the models that are served, and the weights directories that cannot be."""

import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from models import store
from models.base import Family
from models.batch_invariant import prepack_weights
from models.nets import fold_norms
from models.store import Manifest, WeightsError
from service.engine.runner import Runner

log = logging.getLogger(__name__)

GUIDANCE_HELP = (
    "A higher guidance scale makes the label clearer (precision and label accuracy rise) and the samples more alike "
    "(recall falls). The samples of the default are closest to real images. 1 is the trained model, 0 ignores the "
    "label. Any value but 1 runs the net on twice the rows."
)


@dataclass(frozen=True)
class Model:
    """A model that is served: weights with their name, manifest and runner."""

    name: str
    manifest: Manifest
    runner: Runner

    @property
    def family(self) -> Family:
        return self.runner.family

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def version(self) -> str:
        """The first 12 digits of the digest."""
        return self.digest[:12]

    @property
    def key(self) -> str:
        """`name@version`, which identifies these weights in requests."""
        return f"{self.name}@{self.version}"

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The default `steps`, `sampler` and `guidance` of a request."""
        return store.defaults(self.family, self.manifest)

    @property
    def steps(self) -> int:
        return int(self.defaults["steps"])

    @property
    def sampler(self) -> str | None:
        sampler: str | None = self.defaults["sampler"]
        return sampler

    @property
    def guidance(self) -> float:
        return float(self.defaults["guidance"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels by number; empty if the model takes no label."""
        return self.manifest.classes

    @cached_property
    def classes_are_digits(self) -> bool:
        """Whether the classes are called 0, 1, 2 and so on, each by its number."""
        return bool(self.classes) and self.classes == tuple(map(str, range(len(self.classes))))

    def class_number(self, label: str) -> int | None:
        """The class that `label` means: by its name, by its name in another case, or by its number. None if no class.

        A name in another case counts only where it means one class: not `ZEBRA` beside `Zebra` and `zebra`.
        """
        exact, folded = self._class_numbers
        number = exact.get(label, folded.get(fold_name(label)))
        if number is None and label.isascii() and label.isdigit() and int(label) < len(self.classes):
            return int(label)
        return number

    @cached_property
    def _class_numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """The classes by name, and by the folded names that only one class has."""
        names = [fold_name(name) for name in self.classes]
        counts = Counter(names)
        exact = {name: number for number, name in enumerate(self.classes)}
        return exact, {name: number for number, name in enumerate(names) if counts[name] == 1}

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image: [H, W], or [H, W, 3] in colour."""
        channels, height, width = self.manifest.data_shape
        return (height, width) if channels == 1 else (height, width, channels)

    @cached_property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of an initial state: the shape of codes."""
        first = self.family.schedule(self.steps, self.sampler)[:1]
        device = next(iter(self.family.state_dict().values()), first).device
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        label = torch.zeros(1, self.family.classes, device=device)
        return tuple(self.family.initial_state(zero, zero, label, first.to(device)).shape[1:])

    def describe(self) -> dict[str, Any]:
        """A description of the model and of the parameters that it takes, as JSON values."""
        family, about = self.family, self.family.about
        takes: dict[str, Any] = {}
        if family.steps.minimum < family.steps.maximum:
            takes["steps"] = _range(family.steps, self.steps)
        if family.samplers:
            takes[family.sampler_parameter] = {"one_of": list(family.samplers), "default": self.sampler}
        if family.guidance is not None:
            takes["guidance"] = {**_range(family.guidance, self.guidance), "trades": GUIDANCE_HELP}
        if self.classes:
            none = family.unconditional and self.class_number("none") is None
            takes["label"] = {"one_of": list(self.classes), "none": none}
        if self.classes_are_digits:
            digits = list(range(len(self.classes)))
            takes["digit"] = {"one_of": digits, "names": list(self.classes), "none": family.unconditional}
        channels, height, width = self.manifest.data_shape
        return {
            "name": self.name,
            "family": family.name,
            "title": about.title,
            "formula": about.formula,
            "paper": about.paper,
            "digest": self.digest,
            "parameters": self.manifest.parameters,
            "dataset": {key: self.manifest.dataset[key] for key in ("name", "digest") if key in self.manifest.dataset},
            "classes": self.classes,
            "channels": channels,
            "height": height,
            "width": width,
            "uploads": self.manifest.uploads,
            "takes": takes,
            "defaults": {name: values["default"] for name, values in takes.items() if "default" in values},
            "caveat": self.manifest.caveat,
            "encodes": family.encodes,
            "edits": family.edits,
            "code_shape": self.code_shape,
        }


@dataclass(frozen=True)
class Catalog:
    """All weights under a root directory."""

    models: dict[str, Model] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Why a directory with a manifest is not served in its current form, by name."""
    previous: dict[str, Model] = field(default_factory=dict)
    """The previous weights of each name, which requests with that version still get."""

    @property
    def versions(self) -> dict[str, Model]:
        """All models that can generate samples, by key."""
        return {model.key: model for model in (*self.previous.values(), *self.models.values())}


def load(
    old: Catalog,
    root: Path,
    device: torch.device,
    batch_size: Callable[[Family], int],
    only: str | None = None,
    runner: type[Runner] = Runner,
) -> Catalog:
    """Load every weights directory under `root`, or `only` the one of that name, and warm it up on `device`.

    Models of `old` are reused. `batch_size` gives the largest batch of a family. A broken directory does not affect the
    other models, and the model that it would have replaced is still served.
    """
    models, broken, previous = dict[str, Model](), dict[str, str](), dict(old.previous)
    for name in store.list_weights(root):
        if only not in (None, name):
            continue
        current = old.models.get(name)
        try:
            models[name] = _load_model(root / name, device, batch_size, (current, old.previous.get(name)), runner)
        except WeightsError as error:
            broken[name] = str(error)
            log.error("weights %s are not served: %s", name, error)
            if current is not None:
                models[name] = current
        else:
            if current is not None and current.digest != models[name].digest:
                previous[name] = current
    return Catalog(models, broken, {name: model for name, model in previous.items() if name in models})


def _load_model(
    directory: Path,
    device: torch.device,
    batch_size: Callable[[Family], int],
    loaded: Sequence[Model | None],
    runner_type: type[Runner],
) -> Model:
    """The model in `directory`, reused from `loaded` if possible. Raises WeightsError if it cannot generate samples."""
    manifest = store.read_manifest(directory)
    for model in loaded:
        if model is not None and model.digest == manifest.digest:
            store.read_tensors(directory, manifest)  # report damage now, not at the next start
            return replace(model, manifest=manifest)
    family, manifest = store.load(directory, device)
    fold_norms(family)
    if device.type == "cpu":
        prepack_weights(family)
    runner, started_at = runner_type(family, device, batch_size(family)), time.perf_counter()
    try:
        runner.warm_up()
    except Exception as error:
        raise WeightsError(f"{directory} cannot generate samples: {error!r}") from None
    seconds = time.perf_counter() - started_at
    sizes = ", ".join(map(str, runner.sizes))
    log.info("%s warmed up in %.2f s; batch sizes %s", directory.name, seconds, sizes)
    return Model(directory.name, manifest, runner)


def fold_name(name: str) -> str:
    """A class's name without differences of case and of how an accented letter is encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def _range(limits: Any, default: float) -> dict[str, Any]:
    return {"minimum": limits.minimum, "maximum": limits.maximum, "default": default}
