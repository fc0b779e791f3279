"""The models that are served, and those that should be and cannot."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from models import store
from models.base import Family
from models.nets import fold
from models.steady import pack
from models.store import Manifest, WeightsError

GUIDANCE = (
    "More makes the digit surer (precision and label accuracy rise) and the draws more alike (recall falls); by "
    "default they are nearest to real images. 1 is the model as it learned, 0 forgets the digit; anything but 1 runs "
    "the net on twice the rows."
)


@dataclass(frozen=True)
class Model:
    """Weights by their name."""

    name: str
    family: Family
    manifest: Manifest

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
        first = self.family.plan(self.steps, self.sampler)[:1]
        device = next(iter(self.family.state_dict().values()), first).device
        none = torch.zeros(1, dtype=torch.int64, device=device)
        label = torch.zeros(1, self.family.classes, device=device)
        return tuple(self.family.start(none, none, label, first.to(device)).shape[1:])

    def describe(self) -> dict[str, Any]:
        """What it is and what a request may ask of it."""
        family, about = self.family, self.family.about
        takes: dict[str, Any] = {}
        if family.steps.minimum < family.steps.maximum:
            takes["steps"] = _range(family.steps, self.steps)
        if family.samplers:
            takes[family.samplers_are] = {"one_of": list(family.samplers), "default": self.sampler}
        if family.guidance is not None:
            takes["guidance"] = {**_range(family.guidance, self.guidance), "trades": GUIDANCE}
        if family.classes:
            takes["digit"] = {"one_of": list(range(family.classes)), "names": list(self.manifest.classes)}
        return {
            "name": self.name,
            "family": family.name,
            "title": about.title,
            "formula": about.formula,
            "paper": about.paper,
            "digest": self.manifest.digest,
            "parameters": self.manifest.parameters,
            "takes": takes,
            "caveat": self.manifest.caveat,
            "encodes": family.encodes,
            "code_shape": self.code_shape,
        }


@dataclass(frozen=True)
class Catalog:
    """All weights under a root."""

    models: dict[str, Model]
    broken: dict[str, str] = field(default_factory=dict)
    """Why a directory with a manifest is not served, by its name."""


def load(root: Path, device: torch.device, only: str | None = None) -> Catalog:
    """Every weights directory under `root`, or `only` the one so called, on `device`.

    A broken one does not keep the others from being served.
    """
    models, broken = {}, {}
    for name in store.listing(root):
        if only not in (None, name):
            continue
        try:
            model = Model(name, *store.load(root / name, device))
        except WeightsError as error:
            broken[name] = str(error)
        else:
            fold(model.family)
            if device.type == "cpu":
                pack(model.family)
            models[name] = model
    return Catalog(models, broken)


def _range(limits: Any, default: float) -> dict[str, Any]:
    return {"minimum": limits.minimum, "maximum": limits.maximum, "default": default}
