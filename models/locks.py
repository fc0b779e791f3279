"""One process at a time writes into a directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


class Locked(Exception):
    """Another process writes into the directory; the message names it."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Create `directory`, and let no other process lock it meanwhile. Raises Locked if one has done so.

    The lock ends with the process, however that ends. Its file stays.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(f"another process writes into {directory}") from None
    try:
        yield
    finally:
        lock.release()
