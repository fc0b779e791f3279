"""Journals: what a caller sent, and how far his answer has come, as whoever comes after a dead worker sees it."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.server.journal import INITIAL_SIZE, INVALID, Journal, create, tcp_byte_counts

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = create()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The service's end of a connection, and the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def come(journal: Journal, ends: Ends, sent: bytes) -> bytes:
    """Have the caller send something and a worker read it; what the worker sees."""
    ends[1].sendall(sent)
    seen = b""
    while len(seen) < len(sent):
        seen += journal.commit(ends[0].recv_into(journal.get_buffer()))
    return seen


def choke(ends: Ends) -> int:
    """Bytes that went to the caller until no more went in, most of them unacknowledged."""
    ends[0].setblocking(False)
    given = 0
    try:
        while True:
            given += ends[0].send(b"y" * 65536)
    except BlockingIOError:
        return given


def test_what_the_kernel_was_given_is_known_whether_or_not_it_was_read(ends: Ends) -> None:
    ours, theirs = ends
    assert tcp_byte_counts(ours) == (0, 0)
    ours.sendall(b"x" * 1000)
    assert tcp_byte_counts(ours) == (0, 1000)
    theirs.recv(1000, socket.MSG_WAITALL)
    given = 1000 + choke(ends)
    assert tcp_byte_counts(ours) == (0, given)


def test_what_is_acknowledged_while_one_looks_counts_once(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    given = choke(ends)
    monkeypatch.setattr(fcntl, "ioctl", meanwhile(lambda: ends[1].recv(10**6)))
    assert tcp_byte_counts(ends[0]) == (0, given)


def test_what_is_sent_while_one_looks_was_not_read(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends[1].sendall(b"abc")
    ends[0].recv(2)
    monkeypatch.setattr(fcntl, "ioctl", meanwhile(lambda: ends[1].sendall(b"defg")))
    assert tcp_byte_counts(ends[0]) == (2, 0)


def meanwhile(happens: Callable[[], object]) -> Callable[..., Any]:
    """A look into the kernel's queues, after the first of which something `happens`."""
    look, left = fcntl.ioctl, [happens]

    def looked(*given: Any) -> Any:
        found = look(*given)
        if left:
            left.pop()()
        return found

    return looked


def test_the_end_of_what_is_sent_is_no_byte_of_it(ends: Ends) -> None:
    ends[1].sendall(b"abc")
    ends[1].shutdown(socket.SHUT_WR)
    ends[0].recv(2)
    assert tcp_byte_counts(ends[0]) == (2, 0)
    assert (ends[0].recv(9), ends[0].recv(9)) == (b"c", b"")
    assert tcp_byte_counts(ends[0]) == (3, 0)


def test_who_comes_after_finds_all_that_was_sent_however_long(file: int, ends: Ends) -> None:
    first = Journal(file)
    for part in (b"POST / HTTP/1.1\r\n", b"a" * INITIAL_SIZE, b"b" * 3 * INITIAL_SIZE):
        assert come(first, ends, part) == part
    second = Journal(file)
    assert second.take_over(ends[0])
    assert second.sent == b"POST / HTTP/1.1\r\n" + b"a" * INITIAL_SIZE + b"b" * 3 * INITIAL_SIZE
    assert Journal(file).tries == 1


def test_what_a_worker_had_read_and_knew_nothing_of_yet_is_there(file: int, ends: Ends) -> None:
    dead = Journal(file)
    come(dead, ends, b"one")
    ends[0].sendall(b"x" * 10)
    dead.answered(10)
    for part in (b"tw", b"o, which goes on"):
        ends[1].sendall(part)
        ends[0].recv_into(dead.get_buffer()[:5])
        heir = Journal(file)
        assert heir.take_over(ends[0])
        dead = Journal(file)
    assert (dead.sent, dead.tries) == (b"two, wh", 2)


def test_who_had_read_nothing_is_not_what_a_request_died_of(file: int, ends: Ends) -> None:
    for _ in range(3):
        assert Journal(file).take_over(ends[0])
    assert Journal(file).tries == 0


def test_an_answer_that_has_begun_is_for_nobody_else(file: int, ends: Ends) -> None:
    come(Journal(file), ends, b"request")
    ends[0].sendall(b"HTTP/1.1 200 OK")
    assert not Journal(file).take_over(ends[0])


def test_an_answer_that_its_worker_took_with_it_is_given_again(file: int, ends: Ends) -> None:
    dead = Journal(file)
    come(dead, ends, b"request")
    dead.answered(100)  # which the kernel never got
    heir = Journal(file)
    assert heir.take_over(ends[0])
    assert heir.sent == b"request"


def test_after_an_answer_there_is_nothing_to_do_and_the_next_request_counts_from_there(file: int, ends: Ends) -> None:
    dead = Journal(file)
    come(dead, ends, b"a" * 10 * INITIAL_SIZE)
    ends[0].sendall(b"x" * 100)
    dead.answered(100)
    heir = Journal(file)
    assert heir.take_over(ends[0])
    assert (heir.sent, heir.tries) == (b"", 0)
    come(heir, ends, b"next")
    last = Journal(file)
    assert last.take_over(ends[0])
    assert (last.sent, last.tries) == (b"next", 1)


def test_what_was_long_takes_no_room_once_it_is_answered(file: int, ends: Ends) -> None:
    journal = Journal(file)
    come(journal, ends, b"a" * 10 * INITIAL_SIZE)
    journal.answered(1)
    come(journal, ends, b"next")
    assert os.fstat(file).st_size == INITIAL_SIZE


def test_what_is_answered_in_part_is_for_nobody_else_until_all_of_it_is(file: int, ends: Ends) -> None:
    journal = Journal(file)
    come(journal, ends, b"one, two")
    journal.invalidate()
    assert come(journal, ends, b"three") == b"three"
    assert journal.before == INVALID
    assert not Journal(file).take_over(ends[0])
    ends[0].sendall(b"x" * 30)
    journal.answered(30)
    assert Journal(file).take_over(ends[0])
