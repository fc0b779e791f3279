"""The catalog: the models that are served, in memory or not, and the weights directories that cannot be served."""

import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models import kernels, store
from models.base import Family
from models.inference import prepare_for_cpu
from models.nets import fold_norms
from models.store import Manifest, WeightsError
from service.engine.runner import Runner
from service.engine.slot_runner import TILE_ROWS, SlotRunner

log = logging.getLogger(__name__)

GUIDANCE_HELP = (
    "A higher guidance scale makes the label clearer (precision and label accuracy rise) and the samples more alike "
    "(recall falls). The samples of the default are closest to real images. 1 is the trained model, 0 ignores the "
    "label. Any value but 1 runs the net on twice the rows."
)


class Outline(NamedTuple):
    """What requests are checked against."""

    family: Family
    code_shape: tuple[int, ...]
    """The shape of an initial state."""
    inversion_steps: int
    """The number of steps from an encoded image to an initial state."""


@dataclass(frozen=True)
class RemoteRunner:
    """What a process knows of a model that an engine in another process has in memory."""

    outline: Outline
    fingerprint: str

    @property
    def family(self) -> Family:
        """The family, without values in its tensors."""
        return self.outline.family


@dataclass(frozen=True)
class Model:
    """A model that is served: weights with their name and manifest, and in memory with their runner."""

    name: str
    manifest: Manifest
    runner: Runner | RemoteRunner | None = None
    """None until the weights are loaded, and after they were unloaded."""

    @property
    def family(self) -> Family:
        """The family; of a model that is not in memory without values in its tensors."""
        return self.outline.family if self.runner is None else self.runner.family

    @property
    def fingerprint(self) -> str:
        """The fingerprint of a model in memory."""
        assert self.runner is not None
        return self.runner.fingerprint

    @cached_property
    def outline(self) -> Outline:
        """What is known of the model without its weights. Raises WeightsError if its manifest describes no model."""
        if isinstance(self.runner, RemoteRunner):
            return self.runner.outline
        if self.runner is not None:
            return _outline(self.runner.family, self.manifest)
        try:
            outline = _outline(store.build(self.manifest), self.manifest)
        except Exception as error:
            raise WeightsError(f"{self.name} does not match its manifest: {error}") from None
        outline.family.to("meta")  # frees its tensors
        return outline

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

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of an initial state: the shape of codes."""
        return self.outline.code_shape

    @property
    def inversion_steps(self) -> int:
        """The number of steps from an encoded image to an initial state."""
        return self.outline.inversion_steps

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
    """All weights under a root directory. A change makes a new catalog."""

    models: dict[str, Model] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Why a directory with a manifest is not served in its current form, by name."""
    previous: dict[str, Model] = field(default_factory=dict)
    """The previous weights of each name, which requests with that version still get."""

    @property
    def versions(self) -> dict[str, Model]:
        """All models that can generate samples, by key."""
        return {model.key: model for model in (*self.previous.values(), *self.models.values())}

    @property
    def loaded(self) -> dict[str, Model]:
        """The models in memory, by key."""
        return {key: model for key, model in self.versions.items() if model.runner is not None}

    def with_loaded(self, model: Model) -> "Catalog":
        """The catalog after `model` was loaded. The weights that it replaces become the previous ones of its name."""
        old = self.models.get(model.name)
        replaced = {} if old is None or old.runner is None else {model.name: old}
        broken = {name: reason for name, reason in self.broken.items() if name != model.name}
        return Catalog({**self.models, model.name: model}, broken, {**self.previous, **replaced})

    def with_unloaded(self, model: Model) -> "Catalog":
        """The catalog after `model` was unloaded. Previous weights of a name are gone with that: no directory has them.

        `model` is in memory.
        """
        if self.models.get(model.name) is model:
            return replace(self, models={**self.models, model.name: replace(model, runner=None)})
        return replace(self, previous={name: other for name, other in self.previous.items() if other is not model})

    def with_broken(self, name: str, reason: str) -> "Catalog":
        """The catalog after the weights `name` could not be loaded. A model in memory is still served."""
        models = {key: model for key, model in self.models.items() if key != name or model.runner is not None}
        return replace(self, models=models, broken={**self.broken, name: reason})


def scan(old: Catalog, root: Path, only: str | None = None) -> tuple[Catalog, list[str]]:
    """The catalog of the weights directories under `root`, or of `only` one; and the names whose weights are new.

    Loads nothing: new weights are not in memory, or the model that they will replace is still served. Models of `old`
    are reused if their weights are undamaged.
    """
    models, broken, previous, changed = dict[str, Model](), dict[str, str](), dict(old.previous), []
    for name in store.list_weights(root):
        if only not in (None, name):
            continue
        current, earlier = old.models.get(name), old.previous.get(name)
        try:
            manifest = store.read_manifest(root / name)
            known = next((m for m in (current, earlier) if m is not None and m.digest == manifest.digest), None)
            if known is not None:
                store.read_tensors(root / name, manifest)  # report damage now, not at the next start
        except WeightsError as error:
            broken[name] = str(error)
            log.error("weights %s are not served: %s", name, error)
            if current is not None:
                models[name] = current
            continue
        if known is not None:
            models[name] = replace(known, manifest=manifest)
            if known is earlier and current is not None and current.runner is not None:
                previous[name] = current
        else:
            models[name] = Model(name, manifest) if current is None or current.runner is None else current
            changed.append(name)
    previous = {
        name: model for name, model in previous.items() if name in models and model.digest != models[name].digest
    }
    return Catalog(models, broken, previous), changed


def load(
    directory: Path, device: torch.device, batch_size: Callable[[Family], int], runner_type: type[Runner] = Runner
) -> Model:
    """Load the model in `directory` and warm it up on `device`. `batch_size` gives the largest batch of a family.

    Raises WeightsError if the weights cannot generate samples.
    """
    family, manifest = store.load(directory, device)
    fold_norms(family)
    if device.type == "cpu":
        prepare_for_cpu(family)
    started_at = time.perf_counter()
    try:
        runner = _warm_runner(family, device, batch_size(family), runner_type)
    except Exception as error:
        raise WeightsError(f"{directory} cannot generate samples: {error!r}") from None
    seconds = time.perf_counter() - started_at
    sizes = ", ".join(map(str, runner.sizes))
    log.info("%s warmed up in %.2f s; batch sizes %s", directory.name, seconds, sizes)
    return Model(directory.name, manifest, runner)


def _warm_runner(family: Family, device: torch.device, max_batch_size: int, runner_type: type[Runner]) -> Runner:
    """A runner of `runner_type` that is ready; instead of Runner a SlotRunner on a CUDA GPU, if that works there."""
    if runner_type is Runner and device.type == "cuda":
        slot_runner = _slot_runner(family, device, max_batch_size)
        if slot_runner is not None:
            return slot_runner
        torch.cuda.empty_cache()
        max_batch_size = min(max_batch_size, TILE_ROWS)
    with kernels.unused():
        runner = runner_type(family, device, max_batch_size)
        runner.warm_up()
    return runner


def _slot_runner(family: Family, device: torch.device, max_batch_size: int) -> SlotRunner | None:
    """A SlotRunner that is ready; None if it does not work on `device`."""
    try:
        runner = SlotRunner(family, device, max_batch_size)
        runner.warm_up()
    except Exception as error:
        log.warning("%s runs without slots, in smaller batches: %r", family.name, error)
        return None
    return runner


def _outline(family: Family, manifest: Manifest) -> Outline:
    defaults = store.defaults(family, manifest)
    first = family.schedule(defaults["steps"], defaults["sampler"])[:1]
    device = next(iter(family.state_dict().values()), first).device
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    label = torch.zeros(1, family.classes, device=device)
    shape = family.initial_state(zero, zero, label, first.to(device)).shape[1:]
    return Outline(family, tuple(shape), len(family.inversion_schedule()))


def fold_name(name: str) -> str:
    """A class's name without differences of case and of how an accented letter is encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def _range(limits: Any, default: float) -> dict[str, Any]:
    return {"minimum": limits.minimum, "maximum": limits.maximum, "default": default}
