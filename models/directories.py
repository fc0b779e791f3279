"""The files of a weights directory, and the directories that there are. Imports no torch, for the supervisor."""

from pathlib import Path

TENSORS, MANIFEST, SAMPLES = "model.safetensors", "manifest.json", "samples.png"
FILM, SPRITE = "film.json", "film.webp"
"""Of weights whose training was filmed."""


def list_weights(root: Path) -> list[str]:
    """The names of the directories under `root` that have a manifest, sorted."""
    return sorted(path.parent.name for path in root.glob(f"[!.]*/{MANIFEST}"))
