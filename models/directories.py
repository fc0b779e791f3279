"""The files of the weights directory: those of each model, and the indexes. Imports no torch, for the supervisor."""

from pathlib import Path

TENSORS, MANIFEST, SAMPLES = "model.safetensors", "manifest.json", "samples.png"
FILM, SPRITE = "film.json", "film.webp"
"""Of weights whose training was filmed."""
NEAREST = ".nearest"
"""The suffix of an index of a data set's training images (`models/nearest.py`)."""


def list_weights(root: Path) -> list[str]:
    """The names of the directories under `root` that have a manifest, sorted."""
    return sorted(path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))


def list_indexes(root: Path) -> list[Path]:
    """The files under `root` with an index of training images, sorted."""
    return sorted(path for path in root.glob(f"[!.]*{NEAREST}") if path.is_file())
