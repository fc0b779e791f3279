"""From a run to `weights/<name>/`: what the service needs, and all that is known of how it came about."""

import dataclasses
import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from models import families, store
from models.store import Manifest
from training import checkpoint, data
from training.config import ConfigError, RunConfig, check_sampling_options
from training.log import curves
from training.loop import Hardware, Trainer
from training.samples import fixed_samples, grid_png

CONFIG = "config.json"


def export(run: Path, directory: Path, which: str, defaults: dict[str, Any], data_root: Path | None) -> Manifest:
    """Write the averaged weights of `run`'s checkpoint `which` (`best` or `latest`) as the weights `directory`.

    `defaults` overrides what the family gives a request that says nothing: `steps`, `sampler`, `guidance`.
    """
    config = RunConfig.read(run / CONFIG)
    path = run / f"{which}.pt"
    if not path.exists():
        raise ConfigError(f"{run} has no {which} checkpoint yet; let it train until its first one")
    if config.revision != families.get(config.family).revision:
        raise ConfigError(f"{run} trained an older revision of {config.family}; begin a new run")
    dataset = data.load(config.data, data_root, "train")
    trainer = Trainer.from_config(config, dataset, Hardware(torch.device("cpu")))
    state = checkpoint.load(path)
    trainer.load_state_dict(state)
    family = trainer.average
    check_sampling_options(family, defaults)
    trainer.fit()
    manifest = Manifest(
        family=config.family,
        revision=config.revision,
        config=dataclasses.asdict(config.model_config()),
        data_shape=family.data_shape,
        classes=dataset.classes if family.conditional else (),
        defaults={**family.defaults(), **defaults},
        dataset={"name": config.data, "digest": dataset.digest, "images": len(dataset.images)},
        training={
            "images_seen": trainer.images_seen,
            "seconds": round(trainer.seconds, 1),
            "device": state["device"],
            "precision": config.precision,
            "seed": config.seed,
            "recipe": dataclasses.asdict(trainer.recipe),
            "curves": curves(run),
        },
        versions={"python": platform.python_version(), "torch": torch.__version__},
        commit=_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    samples = fixed_samples(family, torch.device("cpu"), 100, **manifest.defaults)
    return store.save(directory, family, manifest, grid_png(samples))


def _commit() -> str:
    """The commit of the code, `-dirty` where files differ from it, or nothing outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
