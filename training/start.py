"""The start of a run from other weights, such as those of another family that has the same net."""

from typing import Any

import torch
from torch import Tensor

from models.base import Family
from models.store import Manifest
from training.config import ConfigError


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a run and its manifest say about the weights that the run started from."""
    return {"family": manifest.family, "digest": manifest.digest}


@torch.no_grad()
def copy_weights(family: Family, source: Family, manifest: Manifest, classes: tuple[str, ...]) -> None:
    """Give the tensors of `family` the values of those that have the same names in `source`, described by `manifest`.

    A tensor that is larger in `family`, as that of a layer with more inputs, gets them as its first rows and columns.
    All other numbers keep their initial values. `classes` are the names of the labels of `family`.

    Raises ConfigError if the data have another shape or other classes, if a tensor of `source` does not fit, or if
    `family` lacks one.
    """
    name = manifest.family
    if (manifest.data_shape, manifest.classes) != (family.data_shape, classes if family.classes else ()):
        raise ConfigError(f"--start: the weights of {name} are of data of another shape, or of other classes")
    tensors = family.state_dict()
    for key, value in source.state_dict().items():
        net, _, rest = key.partition(".")
        for target in family.starts.get(net, (net,)):
            whole = tensors.get(f"{target}.{rest}")
            if whole is None or not _fits(value, whole):
                raise ConfigError(
                    f"--start: {key} of the weights of {name} does not fit into {family.name} with these settings"
                )
            whole[tuple(slice(size) for size in value.shape)] = value


def _fits(part: Tensor, whole: Tensor) -> bool:
    return part.dim() == whole.dim() and all(a <= b for a, b in zip(part.shape, whole.shape, strict=True))
