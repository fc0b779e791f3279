"""Work in a thread beside a block."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def background(function: Callable[[threading.Event], None]) -> Iterator[None]:
    """Call `function` in a thread. At the end of the block, the event that it received is set, and it must return.

    Raises what the function raised.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(function, stopped)
        try:
            yield
        finally:
            stopped.set()
        running.result()
