"""Between sockets and the HTTP protocol: journaled reading, and writing that keeps a response in one piece."""

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from service.server.journal import Journal
    from service.server.protocol import HttpProtocol


class ConnectionRecord(Protocol):
    """What the HTTP protocol records about its connection: a Journal, or nothing."""

    length: int
    response_start: int

    def resume(self) -> bytes:
        """Continue with the bytes that another worker received and did not answer."""

    def mark_answered(self, written: int) -> None:
        """The received bytes are answered, by a response that ends at response byte `written`."""

    def invalidate(self) -> None:
        """No other worker can continue from the received bytes."""

    def close(self) -> None:
        """The connection is closed."""


class NoRecord:
    """For a process without a supervisor, whose connections end with it."""

    length = 0
    response_start = 0

    def resume(self) -> bytes:
        return b""

    def mark_answered(self, written: int) -> None:
        pass

    def invalidate(self) -> None:
        pass

    def close(self) -> None:
        pass


class JournaledReader(asyncio.BufferedProtocol):
    """Receives into the journal: the kernel writes there, so received bytes are never in this process alone."""

    def __init__(self, protocol: "HttpProtocol", journal: "Journal") -> None:
        self.protocol, self.journal = protocol, journal

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.journal.get_buffer()

    def buffer_updated(self, count: int) -> None:
        self.protocol.data_received(self.journal.commit(count))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.protocol.connection_made(cast(asyncio.Transport, transport))

    def connection_lost(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()


class BufferedTransport:
    """A transport that counts bytes, and buffers them until the event loop's next pass or the end of a response.

    So the kernel gets a response's headers with its body, and its last byte only after the journal knows that it is
    the last: a worker may be killed at any moment in between.
    """

    def __init__(self, transport: asyncio.Transport, written: int, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.written, self.loop = transport, written, loop
        self.buffer: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write soon."""
        if not self.buffer:
            self.loop.call_soon(self.flush)
        self.write_buffered(data)

    def write_buffered(self, data: bytes) -> None:
        """Write when the caller flushes."""
        self.written += len(data)
        self.buffer.append(data)

    def flush(self) -> None:
        """Give the kernel what is buffered."""
        if self.buffer and not self.transport.is_closing():
            self.transport.write(b"".join(self.buffer))
        self.buffer.clear()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
