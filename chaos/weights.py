"""Weights that a trial may damage: copies of some of the committed ones."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent / "weights"


def copied(root: Path, *names: str) -> Path:
    """A directory under `root` with the weights called `names`."""
    fresh = root / "weights"
    for name in names:
        shutil.copytree(ROOT / name, fresh / name)
    return fresh
