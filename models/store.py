"""Weights on disk: `weights/<name>/` with `model.safetensors`, `manifest.json` and `samples.png`.

The directory appears, or takes another's place, by one rename when all of it is written, so one that has a manifest is
complete. Nothing is pickled. The digest of the tensors' file is checked before a byte of it is used.
"""

import ctypes
import dataclasses
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from models import families
from models.base import Family

TENSORS, MANIFEST, SAMPLES = "model.safetensors", "manifest.json", "samples.png"
HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE, which `os` has no names for."""


class WeightsError(Exception):
    """A weights directory cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Manifest:
    """All that is known of one trained instance of a family: its model card."""

    family: str
    revision: int
    """The family's, at export."""
    config: dict[str, Any]
    """The family's own settings, from which its nets are built."""
    data_shape: tuple[int, ...]
    classes: tuple[str, ...]
    """The labels' names, in the order of their numbers; empty where the weights take no label."""
    defaults: dict[str, Any]
    """What a request that does not say gets: `steps`, `sampler`, `guidance`, as far as the family takes them."""
    dataset: dict[str, Any]
    """`name`, `digest` (SHA-256 of pixels and labels) and `images` trained on."""
    training: dict[str, Any]
    """`images_seen`, `seconds`, `device`, `precision`, `seed`, `recipe`, and `curves`: by name of the scalar, pairs of
    images seen and its value."""
    versions: dict[str, str]
    commit: str
    created: str
    metrics: dict[str, Any] = field(default_factory=dict)
    caveat: str = ""
    """What goes wrong in these weights' draws, by someone who looked."""
    parameters: int = 0
    """Numbers in the tensors' file."""
    digest: str = ""
    """SHA-256 of `model.safetensors`, whose header repeats what the nets are built from."""

    def identity(self) -> str:
        """What decides, with the tensors, which image a seed gives: goes into the tensors' file and so the digest."""
        return json.dumps(
            [self.family, self.revision, self.config, list(self.data_shape), list(self.classes)], sort_keys=True
        )


def save(directory: Path, family: Family, manifest: Manifest, samples: bytes) -> Manifest:
    """Write `family` (as `for_sampling` left it) as `directory`, replacing what is there, and return its manifest."""
    tensors = {name: tensor.contiguous() for name, tensor in family.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={"identity": manifest.identity()})
    manifest = dataclasses.replace(
        manifest,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        digest=hashlib.sha256(data).hexdigest(),
    )
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_atomic(fresh / TENSORS, data)
    write_atomic(fresh / SAMPLES, samples)
    write_atomic(fresh / MANIFEST, _to_json(manifest))
    if directory.exists():
        swap_directories(fresh, directory)
        shutil.rmtree(fresh)
    else:
        fresh.rename(directory)
    return manifest


def swap_directories(one: Path, other: Path) -> None:
    """Give each the other's name: in one step on Linux, so that a crash leaves neither without; else in three."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None and not renameat2(HERE, bytes(one), HERE, bytes(other), EXCHANGE):
        return
    between = other.with_name(f".{other.name}.old")
    shutil.rmtree(between, ignore_errors=True)
    other.rename(between)
    one.rename(other)
    between.rename(one)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one rename: a crash leaves the old bytes or the new ones, never a part of them."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk most often, which a part of a file only fills further
        fresh.unlink(missing_ok=True)
        raise
    fresh.replace(path)


def annotate(directory: Path, *, metrics: dict[str, Any] | None = None, caveat: str | None = None) -> Manifest:
    """Put what is given in place of the same in the manifest of `directory`, tensors untouched, and return it."""
    found = read_manifest(directory)
    manifest = dataclasses.replace(
        found,
        metrics=found.metrics if metrics is None else metrics,
        caveat=found.caveat if caveat is None else caveat,
    )
    write_atomic(directory / MANIFEST, _to_json(manifest))
    return manifest


def list_weights(root: Path) -> list[str]:
    """The names under `root` that have a manifest, sorted."""
    return sorted(path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of `directory`. Raises WeightsError where there is none or it does not read as one."""
    try:
        fields = json.loads((directory / MANIFEST).read_text())
        manifest = Manifest(**fields)
        return dataclasses.replace(manifest, data_shape=tuple(manifest.data_shape), classes=tuple(manifest.classes))
    except FileNotFoundError:
        raise WeightsError(f"{directory} has no {MANIFEST}: not a weights directory, or one half copied") from None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{directory / MANIFEST} does not read as a manifest ({error}); export it again") from None


def read_tensors(directory: Path, manifest: Manifest) -> bytes:
    """The file of the tensors in `directory`. Raises WeightsError where it is not the one that the manifest means."""
    try:
        data = (directory / TENSORS).read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{directory} has no {TENSORS}; export it again") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.digest:
        raise WeightsError(
            f"{directory / TENSORS} has SHA-256 {digest[:12]}..., its manifest says {manifest.digest[:12]}...: "
            "damaged or from another export; restore the directory as a whole"
        )
    return data


def load(directory: Path, device: torch.device | str = "cpu") -> tuple[Family, Manifest]:
    """The family in `directory`, ready to sample on `device`, and its manifest.

    Raises WeightsError where a file is missing, the digest differs, or the tensors do not fit the config.
    """
    manifest = read_manifest(directory)
    data = read_tensors(directory, manifest)
    try:
        family = build(manifest).for_sampling()
        family.load_state_dict(safetensors.torch.load(data))
    except (families.UnknownFamily, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{directory} does not fit its manifest: {error}") from None
    if _identity(data) != manifest.identity():
        raise WeightsError(f"{directory / MANIFEST} describes other nets than {TENSORS} holds; restore both")
    return family.to(device), manifest


def defaults(family: Family, manifest: Manifest) -> dict[str, Any]:
    """`steps`, `sampler` and `guidance` of a draw that asks for none: the manifest's, else the family's."""
    plain = {"steps": family.steps.default, "sampler": None, "guidance": 1.0}
    return {**plain, **family.defaults(), **manifest.defaults}


def build(manifest: Manifest) -> Family:
    """An untrained family as the manifest describes it. Raises ValueError where that is not this family any more."""
    family = families.get(manifest.family)
    if manifest.revision != family.revision:
        raise ValueError(
            f"made for revision {manifest.revision} of {manifest.family}, this is {family.revision}; train it anew"
        )
    missing = {field.name for field in dataclasses.fields(family.Config)} - manifest.config.keys()
    if missing:
        raise ValueError(f"its config lacks {', '.join(sorted(missing))}; export it again")
    return family(family.Config(**manifest.config), manifest.data_shape, len(manifest.classes))


def _identity(data: bytes) -> str:
    """The metadata that `save` put into the header: 8 bytes of length, then JSON (the safetensors format)."""
    length = int.from_bytes(data[:8], "little")
    return str(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("identity", ""))


def _to_json(manifest: Manifest) -> bytes:
    text = json.dumps(dataclasses.asdict(manifest), indent=2)
    # Lists of numbers on one line each.
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda found: json.dumps(json.loads(found[0])), text)
    return (text + "\n").encode()
