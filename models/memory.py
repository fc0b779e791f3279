"""How the process keeps its memory."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_THRESHOLD_BYTES = 2**30


def retain_freed_memory() -> None:
    """Keep what is freed for what comes next, rather than hand it back to the system and take it anew, page by page.

    A step allocates and frees the same megabytes over and over; with glibc's defaults a fifth of it may go into page
    faults. Without effect where the C library has no `mallopt`.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _THRESHOLD_BYTES)
        mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
