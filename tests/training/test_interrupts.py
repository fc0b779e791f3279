"""Ctrl-C waits where it must."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from training.interrupts import sigint_blocked


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_waits_for_the_end_of_the_block_whichever_thread_receives_it(threads: int) -> None:
    ended = threading.Event()
    others = [threading.Thread(target=ended.wait) for _ in range(threads)]
    for other in others:
        other.start()
    after: list[str] = []

    def block() -> None:
        with sigint_blocked():
            os.kill(os.getpid(), signal.SIGINT)
            after.append("rest of the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            block()
    finally:
        ended.set()
        for other in others:
            other.join()
    assert after == ["rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_without_ctrl_c_leaves_the_handler_as_it_was() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with sigint_blocked():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
