"""The bytes that a client has sent and got no response to, in memory that outlives the worker that read them.

Linux only: memfd_create, TCP_INFO, and descriptors passed between processes.
"""

import fcntl
import mmap
import os
import socket
import struct
import termios

INITIAL_SIZE = 4096
"""Bytes of a new journal; a larger one shrinks to this after the response."""
HEADER = struct.Struct("<IIQQQ")
"""`tries`, `length`, `start`, `response_start`, `response_end`."""
HEADER_OFFSETS = (1, 1 + HEADER.size)
"""There are two headers. The first byte of the memory says which one is valid, so that all fields change at once."""
DATA_OFFSET = 1 + 2 * HEADER.size

INVALID = 2**64 - 1
"""`response_start` of a journal that no other worker can continue from."""
BYTES_ACKED_OFFSET = 120
"""Offset of tcpi_bytes_acked, then tcpi_bytes_received, in `struct tcp_info` (linux/tcp.h); the state is first."""
CLOSE_WAIT = 8
"""The TCP state after the other end has closed."""


class Journal:
    """Shared memory of one connection, mapped by the supervisor and a worker.

    The kernel writes received bytes into it, and knows how many were read and how many response bytes it was given. So
    the supervisor can tell, after a worker was killed at any moment, which bytes are unanswered and whether a response
    has started.

    `tries` counts the workers that have had these bytes: the first once it is dead, and each other one from when it
    continues, since a worker that dies before that cannot have died of them. `length` bytes are held, from position
    `start` of the client's byte stream; the connection had carried `response_start` response bytes before their
    response and `response_end` after it (0 until there is one).
    """

    def __init__(self, file: int) -> None:
        """Map the journal behind a descriptor that `create` made. Raises OSError if no descriptor is left."""
        self.memory = mmap.mmap(file, 0)
        fields = HEADER.unpack_from(self.memory, HEADER_OFFSETS[self.memory[0]])
        self.tries, self.length, self.start, self.response_start, self.response_end = fields

    def get_buffer(self) -> memoryview:
        """Memory for the next received bytes: behind the held ones, or in their place if they were answered."""
        if self.response_end:
            self._reset(self.start + self.length)
            if len(self.memory) > INITIAL_SIZE:
                self.memory.resize(INITIAL_SIZE)
        end = DATA_OFFSET if self.response_start == INVALID else DATA_OFFSET + self.length
        if end == len(self.memory):
            try:
                self.memory.resize(16 * end)  # untouched pages take no memory
            except OSError:  # out of memory: this worker can respond, but no other one can continue
                self.invalidate()
                end = DATA_OFFSET
        return memoryview(self.memory)[end:]

    def commit(self, count: int) -> bytes:
        """Hold the `count` bytes that were received into the buffer, and return them."""
        begin = DATA_OFFSET if self.response_start == INVALID else DATA_OFFSET + self.length
        self.length += count
        return self.memory[begin : begin + count]

    def mark_answered(self, written: int) -> None:
        """Record that the held bytes are answered, by a response that ends at response byte `written`."""
        self.response_end = written
        self._write_header()

    def invalidate(self) -> None:
        """Record that no other worker can continue from the held bytes."""
        self.response_start = INVALID
        self._write_header()

    def take_over(self, connection: socket.socket) -> bool:
        """Prepare the journal for the next worker. False if a response has started, which nothing can continue."""
        read, written = tcp_byte_counts(connection)
        if self.response_end and written == self.response_end:
            self._reset(read)
        elif written == self.response_start:
            self.length, self.response_end = read - self.start, 0
            self.tries = self.tries or int(self.length > 0)
            self._write_header()
        else:
            return False
        return True

    def resume(self) -> bytes:
        """Count this worker as one that has the held bytes, and return them."""
        self.tries += 1
        self._write_header()
        return self.unanswered

    @property
    def unanswered(self) -> bytes:
        """The held bytes."""
        return self.memory[DATA_OFFSET : DATA_OFFSET + self.length]

    def close(self) -> None:
        """Unmap the memory."""
        self.memory.close()

    def _reset(self, read: int) -> None:
        """Hold nothing: all `read` bytes of the client's stream are answered."""
        self.tries, self.length, self.start = 0, 0, read
        self.response_start, self.response_end = self.response_end, 0
        self._write_header()

    def _write_header(self) -> None:
        other = 1 - self.memory[0]
        fields = (self.tries, self.length, self.start, self.response_start, self.response_end)
        HEADER.pack_into(self.memory, HEADER_OFFSETS[other], *fields)
        self.memory[0] = other


def create() -> int:
    """Create an empty journal and return its descriptor. Raises OSError if no descriptor is left."""
    file = os.memfd_create("journal")
    os.ftruncate(file, INITIAL_SIZE)
    return file


def tcp_byte_counts(connection: socket.socket) -> tuple[int, int]:
    """Bytes that were read from a connection, and bytes that the kernel was given to send on it.

    No process may use the connection meanwhile. The client may: the counters are read until two readings agree.
    """
    info = _tcp_info(connection)
    while True:
        unread, unacknowledged = (_queued_bytes(connection, queue) for queue in (termios.FIONREAD, termios.TIOCOUTQ))
        before, info = info, _tcp_info(connection)
        if info == before:
            state, acknowledged, received = info
            return received - (state == CLOSE_WAIT) - unread, acknowledged + unacknowledged  # a FIN counts as a byte


def _tcp_info(connection: socket.socket) -> tuple[int, int, int]:
    """The state of a connection, and its acknowledged and received bytes."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED_OFFSET + 16)
    acknowledged, received = struct.unpack_from("=QQ", info, BYTES_ACKED_OFFSET)
    return info[0], acknowledged, received


def _queued_bytes(connection: socket.socket, queue: int) -> int:
    """Bytes in the kernel's receive or send queue."""
    (count,) = struct.unpack("=i", fcntl.ioctl(connection, queue, bytes(4)))
    return int(count)
