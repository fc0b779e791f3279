"""Tuning of the C library's memory allocator."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_THRESHOLD_BYTES = 2**30


def retain_freed_memory() -> None:
    """Make the allocator reuse freed memory instead of returning it to the operating system.

    Each step allocates and frees the same megabytes; with glibc's defaults, page faults may take a fifth of its time.
    No effect if the C library has no `mallopt`.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows: `CDLL(None)` raises TypeError
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _THRESHOLD_BYTES)
        mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
