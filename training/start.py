"""The start of a run from other weights, such as those of another family that has the same net."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.base import Family
from models.store import Manifest
from training.config import ConfigError

Start = tuple[Family, Manifest]
"""Weights to start from, and their manifest."""


def describe(starts: Sequence[Start]) -> dict[str, Any]:
    """What a run and its manifest say about the weights that the run started from: the last ones, `after` others."""
    *before, last = [{"family": manifest.family, "digest": manifest.digest} for _, manifest in starts]
    return last | ({"after": before} if before else {})


@torch.no_grad()
def copy_weights(family: Family, source: Family, manifest: Manifest, classes: tuple[str, ...]) -> None:
    """Give the tensors of `family` the values of those that have the same names in `source`, described by `manifest`.

    From weights of another family, submodules get those that `family.starts` names. A layer that has more inputs in
    `family` gets them for the first ones. All other numbers keep their values.
    `classes` are the names of the labels of `family`.

    Raises ConfigError if the data have another shape or other classes, if a tensor of `source` does not fit, or if
    `family` lacks one.
    """
    name, names = manifest.family, classes if family.classes else ()
    if (manifest.data_shape, manifest.classes) != (family.data_shape, names):
        raise ConfigError(
            f"--start: the weights of {name} are of data of another shape or with other classes: "
            f"{_described(manifest.data_shape, manifest.classes)}; this run has {_described(family.data_shape, names)}"
        )
    tensors = family.state_dict()
    targets = family.starts if name != family.name else {}
    for key, value in source.state_dict().items():
        net, _, rest = key.partition(".")
        for target in targets.get(net, (net,)):
            whole = tensors.get(f"{target}.{rest}")
            if whole is None or not _fits(value, whole):
                raise ConfigError(
                    f"--start: {key} of the weights of {name} does not fit into {family.name} with these settings"
                )
            (whole[:, : value.shape[1]] if value.dim() > 1 else whole).copy_(value)


def _fits(part: Tensor, whole: Tensor) -> bool:
    """Whether the shapes are equal, or `whole` has more inputs, along its second axis."""
    if part.dim() < 2 or part.dim() != whole.dim():
        return part.shape == whole.shape
    others = [shape[:1] + shape[2:] for shape in (part.shape, whole.shape)]
    return others[0] == others[1] and part.shape[1] <= whole.shape[1]


def _described(shape: tuple[int, ...], classes: tuple[str, ...]) -> str:
    return f"{'x'.join(map(str, shape))}, {len(classes)} classes"
