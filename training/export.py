"""Export of a run to `weights/<name>/`: the weights that the service loads, a manifest of their origin, a film."""

import dataclasses
import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from models import families, store
from models.pixels import to_unit
from models.store import Manifest
from training import checkpoint, data, files, film
from training.checkpoint import NotFinite
from training.config import CONFIG, ConfigError, RunConfig, check_sampling_options, describe
from training.log import curves
from training.loop import has_closed_form, load_tensors
from training.samples import fixed_samples, grid_png

READING = ("resize", "background", "held_out", "skip_unreadable")
"""How the images were read, in a manifest's `dataset`, besides their size and channels: with these the same digest."""
UPLOADS = ("digit", "picture")
"""The values of a manifest's `uploads`."""
DIGITS_SHAPE = (1, 28, 28)
"""The shape of images that uploads can be normalized to as digits."""
PEN_DRAWINGS = ("mnist", "kmnist")
"""Data sets whose images were made as uploads are normalized."""


def export(
    run: Path,
    directory: Path,
    which: str,
    defaults: dict[str, Any],
    data_root: Path | None,
    uploads: str | None = None,
    attribution: str = "",
) -> Manifest:
    """Write the averaged weights of checkpoint `which` (`best` or `latest`) of `run` to `directory`.

    `defaults` override the family's `steps`, `sampler` and `guidance` for requests that name none. `uploads`, one of
    UPLOADS, overrides what the data set suggests. `attribution` names the training images' source and licence. The
    images are loaded only if the checkpoint lacks a closed-form estimate of its weights, or is of an earlier version.

    Raises ConfigError if the run has no such checkpoint, is of another revision of its family, has weights that are not
    finite, or `defaults` are out of range; and DataError if the images are needed and cannot be loaded.
    """
    config = RunConfig.read(run / CONFIG)
    path = run / f"{which}.pt"
    if not path.exists():
        raise ConfigError(f"{run} has no {which} checkpoint yet; train until it has one")
    if config.revision != families.get(config.family).revision:
        raise ConfigError(f"{run} was trained with another revision of {config.family}; start a new run")
    files.require_writable(directory.parent)
    state = checkpoint.load(path)
    stale = has_closed_form(families.get(config.family)) and state.get("fitted_at") != state["images"]
    dataset = _load_data(config, state, data_root) if stale or not config.dataset else None
    if dataset is not None:
        config = dataclasses.replace(config, dataset=describe(dataset))
    family = config.new_family().for_sampling()
    check_sampling_options(family, defaults)
    load_tensors(family, state["average"])
    try:
        checkpoint.require_finite(state["average"])
    except NotFinite as error:
        raise ConfigError(f"{path}: {error}; export another checkpoint with --checkpoint, or train again") from None
    if dataset is not None and stale:
        family.fit(to_unit(dataset.images), dataset.labels)
    manifest = Manifest(
        family=config.family,
        revision=config.revision,
        config=dataclasses.asdict(config.model_config()),
        data_shape=family.data_shape,
        classes=tuple(config.dataset["classes"]) if family.conditional else (),
        defaults={**family.defaults(), **defaults},
        dataset=_dataset(config, state),
        training={
            "images_seen": state["images"] or config.dataset["images"],
            "seconds": round(state["seconds"], 1),
            "device": state["device"],
            **({"device_name": name} if (name := state.get("device_name")) else {}),
            "precision": config.precision,
            "seed": config.seed,
            "recipe": dataclasses.asdict(config.training_recipe()),
            **({"start": config.start} if config.start else {}),
            **({"extended_from": list(config.extended_from)} if config.extended_from else {}),
            "curves": curves(run),
        },
        versions={"python": platform.python_version(), "torch": torch.__version__},
        uploads=_uploads(config, family.data_shape, uploads),
        attribution=attribution,
        commit=_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    samples = fixed_samples(family, torch.device("cpu"), 100, **manifest.defaults)
    filmed = film.assemble(run, family, config.training_recipe(), state["images"], same_run=True)
    return store.save(directory, family, manifest, grid_png(samples), filmed)


def _dataset(config: RunConfig, state: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says about the training images, and about how uploads become such images."""
    return {
        "name": config.dataset.get("name", config.data),  # missing in runs of earlier versions
        "digest": state["data"],
        "images": config.dataset["images"],
        **{key: config.reading[key] for key in READING if key in config.reading},
        **({"augmentation": config.augmentation} if config.augmentation else {}),
    }


def _uploads(config: RunConfig, data_shape: tuple[int, ...], chosen: str | None) -> str:
    """How uploads become images of the training data's kind. Raises ConfigError if they cannot as `chosen`."""
    if chosen == "digit" and data_shape != DIGITS_SHAPE:
        raise ConfigError(f"--uploads: digit needs images of 1x28x28; these are {'x'.join(map(str, data_shape))}")
    is_drawing = data_shape == DIGITS_SHAPE and config.dataset.get("name", config.data) in PEN_DRAWINGS
    return chosen or ("digit" if is_drawing else "picture")


def _load_data(config: RunConfig, state: dict[str, Any], data_root: Path | None) -> data.Dataset:
    """The run's training images. Raises ConfigError if they are other ones now, and DataError if there are none."""
    dataset = data.load(config.data, data_root, "train", data.Options.from_json(config.reading))
    if dataset.digest != state["data"]:
        raise ConfigError(f"{config.data} holds other images than when this run started; restore them")
    return dataset


def _commit() -> str:
    """The commit of the code, with `-dirty` where files differ from it; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
