"""Messages between the supervisor and its workers and engine processes, over socket pairs."""

import struct

READY, CLOSED = b"r", b"-"
"""From a worker: it serves; a connection is closed."""
CONNECTION, ADMIN_CONNECTION, DRAIN, RELOAD = b"+", b"o", b"d", b"w"
"""To a worker: a connection at the main or the admin port; drain and exit; reload weights."""
ENGINE, HTTP_PROCESS = b"e", b"h"
"""To a worker: an engine process; to an engine process: a worker, with the other end of the same socket pair."""
MESSAGE = struct.Struct(">cQ")
"""The kind of a message and the number of its connection. A connection comes with two descriptors: it and its
journal; an engine with two: a socket and the memory in which it notes what it runs; an HTTP process with a socket."""


def pack(kind: bytes, number: int = 0) -> bytes:
    """A message."""
    return MESSAGE.pack(kind, number)
