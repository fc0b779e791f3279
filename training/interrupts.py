"""Interrupts by Ctrl-C. Imports only the standard library."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 130
"""Exit status of a command that a signal ended."""


@contextmanager
def interrupt_exits() -> Iterator[None]:
    """Within the block SIGINT ends the process with one line. For imports, and for work with nothing to clean up.

    Libraries catch KeyboardInterrupt while they are imported, and continue or raise something else.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as for a job in the background
        yield
        return

    def end(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def restored_handlers(*numbers: int) -> Iterator[None]:
    """At the end of the block, handle the signals `numbers` as before it."""
    former = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Let SIGINT wait until the end of the block, and never reach processes that start in it.

    Ctrl-C reaches every process of a terminal; the first one ends the others. New processes inherit the mask, which
    Windows does not have. The mask alone would not do for this process: another thread may receive the signal, and
    Python then interrupts the main thread.
    """
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    has_mask = hasattr(signal, "pthread_sigmask")
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if has_mask else set()
    try:
        yield
    finally:
        if has_mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)
