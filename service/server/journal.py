"""What a caller has sent and was not answered yet, kept where it outlives the worker that was to answer."""

import fcntl
import mmap
import os
import socket
import struct
import termios

INITIAL_SIZE = 4096
"""Bytes that a journal has at first, and again once it held more."""
HEADER = struct.Struct("<IIQQQ")
"""What it says of itself: `tries`, `length`, `begin`, `before`, `after`."""
HEADER_OFFSETS = (1, 1 + HEADER.size)
"""Where: the first byte tells which of the two counts, so that all of it changes from one moment to the next."""
DATA_OFFSET = 1 + 2 * HEADER.size

INVALID = 2**64 - 1
"""`before`, where that is no number that a caller was ever answered."""
ACKNOWLEDGED = 120
"""Where `struct tcp_info` has tcpi_bytes_acked, and after it tcpi_bytes_received (linux/tcp.h); first is the state."""
CLOSE_WAIT = 8
"""The state in which the other end has said its last."""


class Journal:
    """Memory that the front and a worker have in common, one piece for each connection.

    It holds what was sent and not answered, from byte `begin` on: the kernel puts it there, and knows how much was
    read. And it says how many bytes the caller was answered `before`, so that anybody can see how far an answer has
    come: the kernel knows what it was given for him. A worker can be killed at any moment.
    """

    def __init__(self, file: int) -> None:
        """That behind the descriptor of a `blank` one. Raises OSError where there is no descriptor left to keep it."""
        self.memory = mmap.mmap(file, 0)
        head = HEADER.unpack_from(self.memory, HEADER_OFFSETS[self.memory[0]])
        self.tries, self.length, self.begin, self.before, self.after = head

    def get_buffer(self) -> memoryview:
        """Where the kernel is to put what is sent next: behind what is held, or after an answer in its place."""
        if self.after:
            self._begin(self.begin + self.length)
            if len(self.memory) > INITIAL_SIZE:
                self.memory.resize(INITIAL_SIZE)
        end = DATA_OFFSET if self.before == INVALID else DATA_OFFSET + self.length
        if end == len(self.memory):
            try:
                self.memory.resize(16 * end)  # what nothing is put into takes none
            except OSError:  # no memory; it is answered all the same, by this worker or by none
                self.invalidate()
                end = DATA_OFFSET
        return memoryview(self.memory)[end:]

    def commit(self, count: int) -> bytes:
        """What so many bytes are that came into the `room`."""
        begin = DATA_OFFSET if self.before == INVALID else DATA_OFFSET + self.length
        self.length += count
        return self.memory[begin : begin + count]

    def answered(self, written: int) -> None:
        """All that was sent is answered, and the caller has, or is about to get, `written` bytes in all."""
        self.after = written
        self._note()

    def invalidate(self) -> None:
        """From what is held nobody else could go on."""
        self.before = INVALID
        self._note()

    def take_over(self, connection: socket.socket) -> bool:
        """Make it that of the next worker. False where an answer has begun, which only the first could have ended."""
        read, written = tcp_byte_counts(connection)
        if self.after and written == self.after:
            self._begin(read)
        elif written == self.before:
            self.length, self.after = read - self.begin, 0
            self.tries += self.length > 0
            self._note()
        else:
            return False
        return True

    @property
    def sent(self) -> bytes:
        """What is held."""
        return self.memory[DATA_OFFSET : DATA_OFFSET + self.length]

    def close(self) -> None:
        """Let go of it."""
        self.memory.close()

    def _begin(self, read: int) -> None:
        """Hold nothing: the `read` bytes that were ever sent are answered."""
        self.tries, self.length, self.begin, self.before, self.after = 0, 0, read, self.after, 0
        self._note()

    def _note(self) -> None:
        other = 1 - self.memory[0]
        head = (self.tries, self.length, self.begin, self.before, self.after)
        HEADER.pack_into(self.memory, HEADER_OFFSETS[other], *head)
        self.memory[0] = other


def create() -> int:
    """The descriptor of an empty one. Raises OSError where there is none left."""
    file = os.memfd_create("journal")
    os.ftruncate(file, INITIAL_SIZE)
    return file


def tcp_byte_counts(connection: socket.socket) -> tuple[int, int]:
    """Bytes that were ever read from a connection that nobody uses any more, and that the kernel was given for it.

    The caller may go on meanwhile: what he acknowledges or sends between two looks would count twice, or not at all.
    """
    told = _tcp_info(connection)
    while True:
        unread, unacknowledged = (_queued_bytes(connection, where) for where in (termios.FIONREAD, termios.TIOCOUTQ))
        before, told = told, _tcp_info(connection)
        if told == before:
            state, acknowledged, received = told
            return received - (state == CLOSE_WAIT) - unread, acknowledged + unacknowledged  # an end counts as a byte


def _tcp_info(connection: socket.socket) -> tuple[int, int, int]:
    """The state of a connection, and the bytes of it that are acknowledged and received."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED + 16)
    acknowledged, received = struct.unpack_from("=QQ", told, ACKNOWLEDGED)
    return told[0], acknowledged, received


def _queued_bytes(connection: socket.socket, where: int) -> int:
    """Bytes in one of the kernel's queues."""
    (count,) = struct.unpack("=i", fcntl.ioctl(connection, where, bytes(4)))
    return int(count)
