"""Messages between the supervisor and its workers, over a socket pair."""

import struct

READY, CLOSED = b"r", b"-"
"""From a worker: it serves; a connection is closed."""
CONNECTION, ADMIN_CONNECTION, DRAIN, RELOAD = b"+", b"o", b"d", b"w"
"""To a worker: a connection at the main or the admin port; drain and exit; reload weights."""
MESSAGE = struct.Struct(">cQ")
"""The kind of a message and the number of its connection. A connection comes with two descriptors: it and its
journal."""


def pack(kind: bytes, number: int = 0) -> bytes:
    """A message."""
    return MESSAGE.pack(kind, number)
