"""Copies of the committed weights, for tests that change or damage them."""

import shutil
from pathlib import Path

import torch

from models import store

WEIGHTS = Path(__file__).parent.parent / "weights"
"""The committed weights."""


def copy_weights(root: Path, *names: str) -> Path:
    """Copy the committed weights called `names`, or all of them, to `root`/weights and return that directory."""
    directory = root / "weights"
    for name in names or store.list_weights(WEIGHTS):
        shutil.copytree(WEIGHTS / name, directory / name)
    return directory


def perturb_weights(directory: Path, seed: int) -> str:
    """Replace the weights in `directory` by slightly different ones of the same model and return their digest."""
    family, manifest = store.load(directory)
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in family.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1e-3 * tensor.abs().mean() * torch.randn_like(tensor))
    return store.save(directory, family, manifest, (directory / store.SAMPLES).read_bytes()).digest
