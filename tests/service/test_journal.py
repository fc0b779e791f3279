"""Journals: what a caller sent, and how far his answer has come, as whoever comes after a dead worker sees it."""

import os
import socket
from collections.abc import Iterator

import pytest

from service.journal import ROOM, TORN, Journal, blank, written


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = blank()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The service's end of a connection, and the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def test_what_the_kernel_was_given_is_known_whether_or_not_it_was_read(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    assert written(ours) == 0
    ours.sendall(b"x" * 1000)
    assert written(ours) == 1000
    theirs.recv(1000, socket.MSG_WAITALL)
    ours.setblocking(False)
    given = 1000
    try:
        while True:  # until nothing more goes in, most of it unacknowledged
            given += ours.send(b"y" * 65536)
    except BlockingIOError:
        assert written(ours) == given


def test_who_comes_after_finds_all_that_was_sent_however_long(
    file: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    first = Journal(file)
    for part in (b"POST / HTTP/1.1\r\n", b"a" * ROOM, b"b" * 3 * ROOM):
        first.keep(part)
    second = Journal(file)
    assert second.take_over(ends[0])
    assert second.sent == b"POST / HTTP/1.1\r\n" + b"a" * ROOM + b"b" * 3 * ROOM
    assert Journal(file).tries == 1


def test_an_answer_that_has_begun_is_for_nobody_else(file: int, ends: tuple[socket.socket, socket.socket]) -> None:
    Journal(file).keep(b"request")
    ends[0].sendall(b"HTTP/1.1 200 OK")
    assert not Journal(file).take_over(ends[0])


def test_an_answer_that_its_worker_took_with_it_is_given_again(
    file: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    dead = Journal(file)
    dead.keep(b"request")
    dead.answered(100)  # which the kernel never got
    heir = Journal(file)
    assert heir.take_over(ends[0])
    assert heir.sent == b"request"


def test_after_an_answer_there_is_nothing_to_do_and_the_next_request_counts_from_there(
    file: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    dead = Journal(file)
    dead.keep(b"a" * 10 * ROOM)
    ends[0].sendall(b"x" * 100)
    dead.answered(100)
    heir = Journal(file)
    assert heir.take_over(ends[0])
    assert (heir.sent, heir.tries) == (b"", 0)
    heir.keep(b"next")
    last = Journal(file)
    assert last.take_over(ends[0])
    assert (last.sent, last.tries) == (b"next", 1)


def test_what_was_long_takes_no_room_once_it_is_answered(file: int) -> None:
    journal = Journal(file)
    journal.keep(b"a" * 10 * ROOM)
    journal.answered(1)
    journal.keep(b"next")
    assert os.fstat(file).st_size == ROOM


def test_what_is_answered_in_part_is_for_nobody_else_until_all_of_it_is(
    file: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    journal = Journal(file)
    journal.keep(b"one, two")
    journal.tear()
    journal.keep(b"three")
    assert journal.before == TORN
    assert not Journal(file).take_over(ends[0])
    ends[0].sendall(b"x" * 30)
    journal.answered(30)
    assert Journal(file).take_over(ends[0])
