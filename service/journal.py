"""What a caller has sent and was not answered yet, kept where it outlives the worker that was to answer."""

import fcntl
import mmap
import os
import socket
import struct
import termios

ROOM = 4096
"""Bytes that a journal has at first, and again once it held more."""
HEAD = struct.Struct("<IIQQ")
"""Its first bytes: `tries`, `length`, `before`, `after`."""

TORN = 2**64 - 1
"""`before`, where that is no number that a caller was ever answered."""
ACKNOWLEDGED = 120
"""Where `struct tcp_info` has tcpi_bytes_acked (linux/tcp.h)."""


class Journal:
    """Memory that the front and a worker have in common, one piece for each connection.

    It holds what was sent and not answered, and how many bytes the caller was answered `before`, so that anybody can
    see how far an answer has come: the kernel knows what it was given for him. A worker writes as it goes, and can be
    killed at any moment.
    """

    def __init__(self, file: int) -> None:
        """That behind the descriptor of a `blank` one. Raises OSError where there is no descriptor left to keep it."""
        self.memory = mmap.mmap(file, 0)
        self.tries, self.length, self.before, self.after = HEAD.unpack_from(self.memory)

    def keep(self, sent: bytes) -> None:
        """Add what was sent; after an answer, as the first of what is to be answered next."""
        if self.after:
            self.tries, self.length, self.before, self.after = 0, 0, self.after, 0
            if len(self.memory) > ROOM:
                self.memory.resize(ROOM)
        if self.before == TORN:
            return
        begin = HEAD.size + self.length
        end = begin + len(sent)
        if end > len(self.memory):
            try:
                self.memory.resize(2 * end)
            except OSError:  # no memory; it is answered all the same, by this worker or by none
                self.tear()
                return
        self.memory[begin:end] = sent
        self.length += len(sent)
        self._note()

    def answered(self, written: int) -> None:
        """All that was sent is answered, and the caller has, or is about to get, `written` bytes in all."""
        self.after = written
        self._note()

    def tear(self) -> None:
        """From what is held nobody else could go on."""
        self.before = TORN
        self._note()

    def take_over(self, connection: socket.socket) -> bool:
        """Make it that of the next worker. False where an answer has begun, which only the first could have ended."""
        given = written(connection)
        if self.after and given == self.after:
            self.tries, self.length, self.before, self.after = 0, 0, self.after, 0
        elif given == self.before:
            self.tries, self.after = self.tries + 1, 0
        else:
            return False
        self._note()
        return True

    @property
    def sent(self) -> bytes:
        """What is held."""
        return self.memory[HEAD.size : HEAD.size + self.length]

    def close(self) -> None:
        """Let go of it."""
        self.memory.close()

    def _note(self) -> None:
        HEAD.pack_into(self.memory, 0, self.tries, self.length, self.before, self.after)


def blank() -> int:
    """The descriptor of an empty one. Raises OSError where there is none left."""
    file = os.memfd_create("journal")
    os.ftruncate(file, ROOM)
    return file


def written(connection: socket.socket) -> int:
    """Bytes that the kernel was ever given for the other end: those that are acknowledged, and those that are not.

    In this order, so that what is acknowledged meanwhile counts twice and not never: that looks like an answer begun.
    """
    (queued,) = struct.unpack("=i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED + 8)
    (acknowledged,) = struct.unpack_from("=Q", told, ACKNOWLEDGED)
    return int(queued) + int(acknowledged)
