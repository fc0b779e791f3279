"""What an engine process runs, in memory that outlives it. The supervisor creates it, so this needs no torch."""

import mmap
import sys
from array import array
from collections.abc import Iterable

MAX_RUNNING = 2 * 4096
"""As many requests as two batches have rows at most: a GPU's step is launched while the one before it runs."""
SIZE = 8 * (2 + MAX_RUNNING)
"""Bytes of the memory: the number of a request being submitted, a count, and so many numbers."""


class RunningRequests:
    """Memory that outlives an engine process: the numbers of the requests in its device step, or in its hands.

    If the process dies, one of them may be why.
    """

    def __init__(self, file: int) -> None:
        """Map the memory behind a descriptor. Its first number is a request being submitted, the second a count."""
        self.memory = mmap.mmap(file, SIZE)

    def set_submitted(self, number: int) -> None:
        """A request is being submitted; 0: none."""
        self.memory[:8] = number.to_bytes(8, sys.byteorder)

    def set_running(self, numbers: Iterable[int]) -> None:
        """The step that is about to run has rows of these requests."""
        values = array("Q", numbers)
        data = array("Q", [len(values)]).tobytes() + values.tobytes()
        self.memory[8 : 8 + len(data)] = data

    def read(self) -> set[int]:
        """The numbers of all of them."""
        submitted, count, *running = array("Q", self.memory[:])
        return {submitted, *running[:count]} - {0}

    def close(self) -> None:
        """Unmap the memory."""
        self.memory.close()
