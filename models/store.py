"""Weights on disk: `weights/<name>/` with `model.safetensors`, `manifest.json` and `samples.png`, and mostly a film.

`save` writes a complete directory first and then renames it into place, so a directory with a manifest is complete.
Nothing is pickled. `load` verifies the digest of the tensors' file before it uses any of it.
"""

import ctypes
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from models import families
from models.base import Family
from models.directories import MANIFEST as MANIFEST
from models.directories import SAMPLES as SAMPLES
from models.directories import TENSORS as TENSORS
from models.directories import list_weights as list_weights
from models.film import Film

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux constants that `os` does not define."""


class WeightsError(Exception):
    """A weights directory cannot be used. The message says which one, why, and what to do."""


@dataclass(frozen=True)
class Manifest:
    """The model card of one trained instance of a family."""

    family: str
    revision: int
    """The family's revision at export."""
    config: dict[str, Any]
    """The fields of the family's `Config`, which determine its nets."""
    data_shape: tuple[int, ...]
    classes: tuple[str, ...]
    """The names of the labels by number; empty if the weights take no label."""
    defaults: dict[str, Any]
    """The request defaults `steps`, `sampler` and `guidance`, as far as the family takes them."""
    dataset: dict[str, Any]
    """`name`, `digest` (SHA-256 of pixels and labels) and `images`, the number of training images."""
    training: dict[str, Any]
    """`images_seen`, `seconds`, `device` (and `device_name` of a GPU), `precision`, `seed`, `recipe`, and `curves`: for
    each scalar's name, pairs of images seen and value."""
    versions: dict[str, str]
    commit: str
    created: str
    metrics: dict[str, Any] = field(default_factory=dict)
    uploads: str = "digit"
    """How uploads become inputs: `digit` normalizes them as MNIST was made, which needs (1, 28, 28); `picture` crops
    and scales them to `data_shape`. Weights of earlier versions lack the field; all of them took digits."""
    attribution: str = ""
    """Source and licence of the training images, as named at export."""
    caveat: str = ""
    """Known defects of these weights' samples, from a visual inspection."""
    parameters: int = 0
    """The number of scalars in the tensors' file."""
    digest: str = ""
    """SHA-256 of `model.safetensors`, whose header contains `identity()`."""

    def identity(self) -> str:
        """What determines a seed's image, together with the tensors. Part of the tensors' file, so of the digest."""
        return json.dumps(
            [self.family, self.revision, self.config, list(self.data_shape), list(self.classes)], sort_keys=True
        )


def save(directory: Path, family: Family, manifest: Manifest, samples: bytes, film: Film | None = None) -> Manifest:
    """Write `family`, after `for_sampling`, to `directory`, replacing an earlier one, and return its manifest."""
    tensors = {name: tensor.contiguous() for name, tensor in family.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={"identity": manifest.identity()})
    manifest = dataclasses.replace(
        manifest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        digest=hashlib.sha256(data).hexdigest(),
    )
    new = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write_atomic(new / TENSORS, data)
    write_atomic(new / SAMPLES, samples)
    for name, content in film.files(manifest.digest).items() if film is not None else ():
        write_atomic(new / name, content)
    write_atomic(new / MANIFEST, _to_json(manifest))
    if directory.exists():
        swap_directories(new, directory)
        shutil.rmtree(new)
    else:
        new.rename(directory)
    return manifest


def swap_directories(one: Path, other: Path) -> None:
    """Swap the names of two directories: atomically on Linux, elsewhere by three renames."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None and not renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        return
    temporary = other.with_name(f".{other.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    other.rename(temporary)
    one.rename(other)
    temporary.rename(one)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by one rename: a crash leaves the old bytes or the new ones, never a mixture."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # most often a full disk, which the incomplete file would fill further
        new.unlink(missing_ok=True)
        raise
    new.replace(path)


def annotate(directory: Path, *, metrics: dict[str, Any] | None = None, caveat: str | None = None) -> Manifest:
    """Replace `metrics` or `caveat` in the manifest of `directory`, and return it. The tensors stay as they are."""
    manifest = read_manifest(directory)
    manifest = dataclasses.replace(
        manifest,
        metrics=manifest.metrics if metrics is None else metrics,
        caveat=manifest.caveat if caveat is None else caveat,
    )
    write_atomic(directory / MANIFEST, _to_json(manifest))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of `directory`. Raises WeightsError if it is missing, unreadable or invalid."""
    try:
        fields = json.loads((directory / MANIFEST).read_text())
        manifest = Manifest(**fields)
        return dataclasses.replace(manifest, data_shape=tuple(manifest.data_shape), classes=tuple(manifest.classes))
    except FileNotFoundError:
        raise WeightsError(f"{directory} has no {MANIFEST}: not a weights directory, or an incomplete copy") from None
    except OSError as error:
        raise WeightsError(f"{directory / MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{directory / MANIFEST} is not a valid manifest ({error}); export it again") from None


def read_tensors(directory: Path, manifest: Manifest) -> bytes:
    """Read the tensors' file of `directory`. Raises WeightsError if that fails, or if its digest differs."""
    try:
        data = (directory / TENSORS).read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{directory} has no {TENSORS}; export it again") from None
    except OSError as error:
        raise WeightsError(f"{directory / TENSORS} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.digest:
        raise WeightsError(
            f"{directory / TENSORS} has SHA-256 {digest[:12]}..., its manifest says {manifest.digest[:12]}...: "
            "damaged or from another export; restore the whole directory"
        )
    return data


def load(directory: Path, device: torch.device | str = "cpu") -> tuple[Family, Manifest]:
    """Load the family in `directory`, ready to sample on `device`, and its manifest.

    Raises WeightsError if a file is missing, the digest differs, or the tensors do not match the config.
    """
    manifest = read_manifest(directory)
    data = read_tensors(directory, manifest)
    try:
        family = build(manifest).for_sampling()
        family.load_state_dict(safetensors.torch.load(data))
    except (families.UnknownFamily, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{directory} does not match its manifest: {error}") from None
    if _identity(data) != manifest.identity():
        raise WeightsError(f"{directory / MANIFEST} describes other nets than {TENSORS} contains; restore both")
    return family.to(device), manifest


def defaults(family: Family, manifest: Manifest) -> dict[str, Any]:
    """The default `steps`, `sampler` and `guidance` of a request: the manifest's, otherwise the family's."""
    fallback = {"steps": family.steps.default, "sampler": None, "guidance": 1.0}
    return {**fallback, **family.defaults(), **manifest.defaults}


def build(manifest: Manifest) -> Family:
    """Build the untrained family that the manifest describes.

    Fields that the config lacks are newer than the weights and have their defaults, which leave the nets as they were.
    Raises UnknownFamily, or ValueError if the family has another revision.
    """
    family = families.get(manifest.family)
    if manifest.revision != family.revision:
        raise ValueError(
            f"made for revision {manifest.revision} of {manifest.family}, this is {family.revision}; train it again"
        )
    return family(family.Config(**manifest.config), manifest.data_shape, len(manifest.classes))


def _identity(data: bytes) -> str:
    """The identity that `save` wrote into the header: 8 bytes of length, then JSON (the safetensors format)."""
    length = int.from_bytes(data[:8], "little")
    return str(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("identity", ""))


def _to_json(manifest: Manifest) -> bytes:
    text = json.dumps(dataclasses.asdict(manifest), indent=2)
    # Each list of numbers on one line.
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda match: json.dumps(json.loads(match[0])), text)
    return (text + "\n").encode()
