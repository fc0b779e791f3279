"""Journals: the next worker finds the unanswered bytes of a connection, whenever its worker died."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from service.server.journal import INITIAL_SIZE, INVALID, Journal, create, tcp_byte_counts


class Ends(NamedTuple):
    """The two ends of a TCP connection."""

    service: socket.socket
    client: socket.socket


@pytest.fixture
def file() -> Iterator[int]:
    """The descriptor of an empty journal."""
    descriptor = create()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        service, _ = listener.accept()
    with service, client:
        yield Ends(service, client)


def exchange(journal: Journal, ends: Ends, data: bytes) -> bytes:
    """Send `data` as the client, receive it into the journal, and return what the worker gets."""
    ends.client.sendall(data)
    received = b""
    while len(received) < len(data):
        received += journal.commit(ends.service.recv_into(journal.get_buffer()))
    return received


# -- the kernel's counts -----------------------------------------------------------------------------------------------


def fill_send_buffer(ends: Ends) -> int:
    """Send to the client until the kernel takes no more; the number of bytes, most of them unacknowledged."""
    ends.service.setblocking(False)
    count = 0
    try:
        while True:
            count += ends.service.send(b"y" * 65536)
    except BlockingIOError:
        return count


def after_first_call(action: Callable[[], object]) -> Callable[..., Any]:
    """`fcntl.ioctl` that calls `action` after its first call."""
    ioctl, actions = fcntl.ioctl, [action]

    def replacement(*args: Any) -> Any:
        result = ioctl(*args)
        if actions:
            actions.pop()()
        return result

    return replacement


def test_written_bytes_count_whether_or_not_the_client_has_read_them(ends: Ends) -> None:
    assert tcp_byte_counts(ends.service) == (0, 0)
    ends.service.sendall(b"x" * 1000)
    assert tcp_byte_counts(ends.service) == (0, 1000)
    ends.client.recv(1000, socket.MSG_WAITALL)
    written = 1000 + fill_send_buffer(ends)
    assert tcp_byte_counts(ends.service) == (0, written)


def test_bytes_that_are_acknowledged_during_the_reading_count_once(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fill_send_buffer(ends)
    monkeypatch.setattr(fcntl, "ioctl", after_first_call(lambda: ends.client.recv(10**6)))
    assert tcp_byte_counts(ends.service) == (0, written)


def test_bytes_that_arrive_during_the_reading_are_unread(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.client.sendall(b"abc")
    ends.service.recv(2)
    monkeypatch.setattr(fcntl, "ioctl", after_first_call(lambda: ends.client.sendall(b"defg")))
    assert tcp_byte_counts(ends.service) == (2, 0)


def test_the_end_of_the_clients_stream_does_not_count_as_a_byte(ends: Ends) -> None:
    ends.client.sendall(b"abc")
    ends.client.shutdown(socket.SHUT_WR)
    ends.service.recv(2)
    assert tcp_byte_counts(ends.service) == (2, 0)
    assert (ends.service.recv(9), ends.service.recv(9)) == (b"c", b"")
    assert tcp_byte_counts(ends.service) == (3, 0)


# -- the next worker ---------------------------------------------------------------------------------------------------


def test_the_next_worker_gets_all_unanswered_bytes(file: int, ends: Ends) -> None:
    first = Journal(file)
    parts = (b"POST / HTTP/1.1\r\n", b"a" * INITIAL_SIZE, b"b" * 3 * INITIAL_SIZE)
    for part in parts:
        assert exchange(first, ends, part) == part
    second = Journal(file)
    assert second.take_over(ends.service)
    assert second.unanswered == b"".join(parts)
    assert Journal(file).tries == 1


def test_bytes_that_the_dead_worker_received_and_did_not_commit_are_kept(file: int, ends: Ends) -> None:
    dead = Journal(file)
    exchange(dead, ends, b"one")
    ends.service.sendall(b"x" * 10)
    dead.mark_answered(10)
    for part in (b"tw", b"o, which goes on"):
        ends.client.sendall(part)
        ends.service.recv_into(dead.get_buffer()[:5])
        assert Journal(file).take_over(ends.service)
        dead = Journal(file)
    assert dead.unanswered == b"two, wh"


def test_workers_that_continue_with_a_request_are_counted_and_those_that_die_before_are_not(
    file: int, ends: Ends
) -> None:
    exchange(Journal(file), ends, b"request")
    for tries in (1, 2):
        for _ in range(3):  # workers that die before they read the journal
            heir = Journal(file)
            assert heir.take_over(ends.service)
            assert heir.tries == tries
        assert Journal(file).resume() == b"request"


def test_a_worker_that_received_nothing_does_not_count_as_a_try(file: int, ends: Ends) -> None:
    for _ in range(3):
        assert Journal(file).take_over(ends.service)
    assert Journal(file).tries == 0


def test_a_response_that_has_started_cannot_be_taken_over(file: int, ends: Ends) -> None:
    exchange(Journal(file), ends, b"request")
    ends.service.sendall(b"HTTP/1.1 200 OK")
    assert not Journal(file).take_over(ends.service)


def test_a_response_that_the_kernel_never_got_is_sent_by_the_next_worker(file: int, ends: Ends) -> None:
    dead = Journal(file)
    exchange(dead, ends, b"request")
    dead.mark_answered(100)
    heir = Journal(file)
    assert heir.take_over(ends.service)
    assert heir.unanswered == b"request"


def test_after_a_response_the_journal_starts_with_the_next_request(file: int, ends: Ends) -> None:
    dead = Journal(file)
    exchange(dead, ends, b"a" * 10 * INITIAL_SIZE)
    ends.service.sendall(b"x" * 100)
    dead.mark_answered(100)
    heir = Journal(file)
    assert heir.take_over(ends.service)
    assert (heir.unanswered, heir.tries) == (b"", 0)
    exchange(heir, ends, b"next")
    last = Journal(file)
    assert last.take_over(ends.service)
    assert (last.unanswered, last.tries) == (b"next", 1)


def test_a_journal_shrinks_after_the_response(file: int, ends: Ends) -> None:
    journal = Journal(file)
    exchange(journal, ends, b"a" * 10 * INITIAL_SIZE)
    journal.mark_answered(1)
    exchange(journal, ends, b"next")
    assert os.fstat(file).st_size == INITIAL_SIZE


def test_partly_answered_bytes_cannot_be_taken_over_until_all_are_answered(file: int, ends: Ends) -> None:
    journal = Journal(file)
    exchange(journal, ends, b"one, two")
    journal.invalidate()
    assert exchange(journal, ends, b"three") == b"three"
    assert journal.response_start == INVALID
    assert not Journal(file).take_over(ends.service)
    ends.service.sendall(b"x" * 30)
    journal.mark_answered(30)
    assert Journal(file).take_over(ends.service)
