"""Decoded pictures, kept on disk: $XDG_CACHE_HOME/drawbridge/pictures, by default in ~/.cache.

An entry is a file; its key stands for the pictures and for how they were read. What cannot be written is not kept, and
what cannot be read counts as missing. The entries that were not used for longest make room for new ones.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 8 * 2**30
"""Size of all entries together."""


def directory() -> Path:
    """The directory of the entries. Raises RuntimeError if this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "drawbridge" / "pictures"


def key(*parts: Any) -> str:
    """The key of an entry that depends on `parts`, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def load(entry: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of an entry; None if it is missing or damaged, which a checksum shows."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile):
        path = directory() / f"{entry}.npz"
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
        os.utime(path)
        return arrays
    return None


def save(entry: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an entry, and delete the least recently used ones that exceed MAX_BYTES."""
    size = sum(array.nbytes for array in arrays.values())
    if size > MAX_BYTES:
        return
    temporary = None
    try:
        folder = directory()
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others:
            size += path.stat().st_size
            if size > MAX_BYTES:
                path.unlink()
        temporary = folder / f".{entry}.{os.getpid()}.npz"
        np.savez(temporary, allow_pickle=False, **arrays)
        temporary.replace(folder / f"{entry}.npz")
    except (OSError, RuntimeError):
        if temporary is not None:
            temporary.unlink(missing_ok=True)
