"""Many samples of a model, drawn by all cores and kept on disk: an interrupted command goes on, and others use them."""

import hashlib
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models import store
from training import files, pool
from training.sources import BATCH, SampleSet, Service, Source

DIRECTORY = Path("runs/draws")
CHUNK = 8 * BATCH
"""Samples per file."""
SEED = 0
"""Of all samples."""
SECONDS = 10.0
"""Least time between two lines of progress."""


def draw(source: Source, name: str, count: int, directory: Path = DIRECTORY) -> SampleSet:
    """Images 0..count-1 of SEED from model `name`, with the model's defaults.

    Those that are in `directory` are read, others drawn and written there. Prints its progress.
    """
    manifest = source.manifest(name)
    origin = source.url if isinstance(source, Service) else ""
    identity = json.dumps([manifest.digest, manifest.defaults, origin], sort_keys=True)
    folder = directory / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    files.require_writable(folder)
    paths = {first: folder / f"{first:08d}.npz" for first in range(0, count, CHUNK)}
    missing = [first for first, path in paths.items() if not path.exists()]
    started_at = printed_at = time.monotonic()
    for done, (first, chunk) in enumerate(pool.completed(_chunk, {i: (source, name, i) for i in missing}), 1):
        store.write_atomic(paths[first], chunk)
        if time.monotonic() - printed_at > SECONDS and done < len(missing):
            printed_at = time.monotonic()
            print(f"{name}: {done * CHUNK:,} of {len(missing) * CHUNK:,} draws", flush=True)
    if missing:
        minutes = (time.monotonic() - started_at) / 60
        print(f"{name}: {len(missing) * CHUNK:,} draws in {minutes:.1f} min, kept in {folder}", flush=True)
    parts = [_read(path) for path in paths.values()]
    images = torch.from_numpy(np.concatenate([images for images, _ in parts])[:count])
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts])[:count])
    return SampleSet(images, labels if manifest.classes else None)


def _chunk(source: Source, name: str, first: int) -> bytes:
    """The npz file of CHUNK samples, in a worker process."""
    samples = source.sample(name, SEED, CHUNK, first=first)
    labels = torch.full((CHUNK,), -1) if samples.requested_labels is None else samples.requested_labels
    buffer = io.BytesIO()
    np.savez(buffer, images=samples.images.numpy(), labels=labels.numpy())
    return buffer.getvalue()


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(path) as arrays:
        return arrays["images"], arrays["labels"]
