"""The models that are served, and those that should be and cannot."""

import logging
import time
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
    "More makes the digit surer (precision and label accuracy rise) and the draws more alike (recall falls); by "
    "default they are nearest to real images. 1 is the model as it learned, 0 forgets the digit; anything but 1 runs "
    "the net on twice the rows."
)


@dataclass(frozen=True)
class Model:
    """Weights by their name."""

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
        """As much of the digest as tells it from others."""
        return self.digest[:12]

    @property
    def key(self) -> str:
        """Its name with its version: what a request asks for that means no other."""
        return f"{self.name}@{self.version}"

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The `steps`, `sampler` and `guidance` of a request that names none."""
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

    @cached_property
    def code_shape(self) -> tuple[int, ...]:
        """Of the states where its chains start: what encoding gives, and what can be decoded."""
        first = self.family.schedule(self.steps, self.sampler)[:1]
        device = next(iter(self.family.state_dict().values()), first).device
        none = torch.zeros(1, dtype=torch.int64, device=device)
        label = torch.zeros(1, self.family.classes, device=device)
        return tuple(self.family.initial_state(none, none, label, first.to(device)).shape[1:])

    def describe(self) -> dict[str, Any]:
        """What it is and what a request may ask of it."""
        family, about = self.family, self.family.about
        takes: dict[str, Any] = {}
        if family.steps.minimum < family.steps.maximum:
            takes["steps"] = _range(family.steps, self.steps)
        if family.samplers:
            takes[family.sampler_parameter] = {"one_of": list(family.samplers), "default": self.sampler}
        if family.guidance is not None:
            takes["guidance"] = {**_range(family.guidance, self.guidance), "trades": GUIDANCE_HELP}
        if family.classes:
            takes["digit"] = {"one_of": list(range(family.classes)), "names": list(self.manifest.classes)}
        return {
            "name": self.name,
            "family": family.name,
            "title": about.title,
            "formula": about.formula,
            "paper": about.paper,
            "digest": self.digest,
            "parameters": self.manifest.parameters,
            "takes": takes,
            "caveat": self.manifest.caveat,
            "encodes": family.encodes,
            "code_shape": self.code_shape,
        }


@dataclass(frozen=True)
class Catalog:
    """All weights under a root."""

    models: dict[str, Model] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Why a directory with a manifest is not served as it is, by its name."""
    previous: dict[str, Model] = field(default_factory=dict)
    """What was served before under these names, and still is where one asks for that version."""

    @property
    def versions(self) -> dict[str, Model]:
        """Everything that can be drawn from, by key."""
        return {model.key: model for model in (*self.previous.values(), *self.models.values())}


def load(
    old: Catalog,
    root: Path,
    device: torch.device,
    seats: Callable[[Family], int],
    only: str | None = None,
    runner: type[Runner] = Runner,
) -> Catalog:
    """Every weights directory under `root`, or `only` the one so called, warm on `device`; what `old` has is kept.

    `seats` says how many rows a step of a family has at most.

    A broken one does not keep the others from being served, nor its own predecessor.
    """
    models, broken, previous = dict[str, Model](), dict[str, str](), dict(old.previous)
    for name in store.list_weights(root):
        if only not in (None, name):
            continue
        now = old.models.get(name)
        try:
            models[name] = _model(root / name, device, seats, (now, old.previous.get(name)), runner)
        except WeightsError as error:
            broken[name] = str(error)
            log.error("weights %s are not served: %s", name, error)
            if now is not None:
                models[name] = now
        else:
            if now is not None and now.digest != models[name].digest:
                previous[name] = now
    return Catalog(models, broken, {name: model for name, model in previous.items() if name in models})


def _model(
    directory: Path,
    device: torch.device,
    seats: Callable[[Family], int],
    known: Sequence[Model | None],
    kind: type[Runner],
) -> Model:
    """The model in `directory`, one of those `known` if it is one. Raises WeightsError where nothing draws."""
    manifest = store.read_manifest(directory)
    for model in known:
        if model is not None and model.digest == manifest.digest:
            store.read_tensors(directory, manifest)  # what is damaged is named now, and not at the next start
            return replace(model, manifest=manifest)
    family, manifest = store.load(directory, device)
    fold_norms(family)
    if device.type == "cpu":
        prepack_weights(family)
    runner, begun = kind(family, device, seats(family)), time.perf_counter()
    try:
        runner.warm_up()
    except Exception as error:
        raise WeightsError(f"{directory} does not draw: {error!r}") from None
    seconds = time.perf_counter() - begun
    log.info("%s is warm after %.2f s; batches of %s", directory.name, seconds, ", ".join(map(str, runner.sizes)))
    return Model(directory.name, manifest, runner)


def _range(limits: Any, default: float) -> dict[str, Any]:
    return {"minimum": limits.minimum, "maximum": limits.maximum, "default": default}
