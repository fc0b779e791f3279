"""The supervisor's view of worker and engine processes and of a client's connection."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from service.engine import running
from service.errors import Problem
from service.server import journal
from service.server.messages import ENGINE, HTTP_PROCESS, MESSAGE, pack

WORKER_COMMAND = (sys.executable, "-m", "service.server.worker")
"""Starts a worker. Its arguments: a descriptor of its end of the socket pair, its index, the number of workers, and
the shared directory."""
ENGINE_COMMAND = (sys.executable, "-m", "service.server.engine_process")
"""Starts an engine process. Its arguments: a descriptor of its end of the socket pair, its index, the number of engine
processes, and the descriptor of the memory in which it notes what it runs."""

PEEKED_BYTES = 8192
"""Bytes of a waiting request that the supervisor looks at."""


@dataclass(eq=False)
class Connection:
    """A client's connection, until it is closed."""

    socket: socket.socket
    kind: bytes
    """CONNECTION or ADMIN_CONNECTION, by the port."""
    journal: int
    """Descriptor of the journal."""
    number: int = field(default_factory=count().__next__)

    def close(self) -> None:
        """Close the connection."""
        os.close(self.journal)
        self.socket.close()

    def peek(self) -> bytes | None:
        """The bytes that have arrived, which stay unread; empty if the client has closed, None if nothing arrived."""
        try:
            return self.socket.recv(PEEKED_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def respond(self, response: bytes) -> None:
        """Send a whole response to the request on the connection, and close it."""
        with contextlib.suppress(OSError):
            self.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.socket.recv(65536)  # unread bytes would reset the connection before the response arrives
            self.socket.send(response)
        self.close()

    def reject(self, problem: Problem) -> None:
        """Respond with a problem to the request on the connection, and close it."""
        self.respond(problem.raw_response())


def accept(listener: socket.socket, kind: bytes) -> Connection:
    """The next connection. Raises BlockingIOError if none waits, OSError if none can be accepted."""
    file = journal.create()
    try:
        return Connection(listener.accept()[0], kind, file)
    except OSError:
        os.close(file)
        raise


class ChildProcess:
    """A process with a control socket."""

    def __init__(self, command: Sequence[str], index: int, *arguments: object, descriptors: Sequence[int] = ()) -> None:
        self.index, self.ready = index, False
        self.control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(index), *map(str, arguments)],
            pass_fds=[theirs.fileno(), *descriptors],
            start_new_session=True,  # a terminal's Ctrl-C goes to the supervisor alone, which drains the workers
        )
        theirs.close()
        self.control.setblocking(False)

    def fileno(self) -> int:
        """The descriptor of the control socket, for selectors."""
        return self.control.fileno()

    def recv(self) -> Iterator[tuple[bytes, int]]:
        """Its messages. Raises EOFError if it is dead."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    message = self.control.recv(MESSAGE.size)
                except ConnectionError:
                    message = b""
                if not message:
                    raise EOFError
                yield MESSAGE.unpack(message)

    def wait(self) -> int:
        """The exit status of a process whose end of the control socket is closed."""
        self.control.close()
        return self.process.wait()


class EngineProcess(ChildProcess):
    """An engine process."""

    def __init__(self, command: Sequence[str], index: int, count: int) -> None:
        self.running = os.memfd_create("running")
        os.ftruncate(self.running, running.SIZE)
        super().__init__(command, index, count, self.running, descriptors=[self.running])

    def connect(self, worker: "WorkerProcess") -> bool:
        """Connect it with a worker. False if one of them cannot take the message now."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                socket.send_fds(self.control, [pack(HTTP_PROCESS, worker.index)], [ours.fileno()])
                socket.send_fds(worker.control, [pack(ENGINE, self.index)], [theirs.fileno(), self.running])
            except BlockingIOError:
                return False
            except OSError:  # one of them is dead, and its successor will be connected
                return True
        return True

    def wait(self) -> int:
        os.close(self.running)  # workers have it too
        return super().wait()


class WorkerProcess(ChildProcess):
    """A worker process."""

    def __init__(self, command: Sequence[str], index: int, count: int, shared: Path) -> None:
        self.connections = dict[int, Connection]()
        self.draining = self.stale = False
        """Whether it takes no more connections; whether it loaded weights that are replaced now."""
        super().__init__(command, index, count, shared)

    @property
    def accepts_connections(self) -> bool:
        """Whether it can take new connections."""
        return self.ready and not self.draining

    def send_connection(self, connection: Connection) -> bool:
        """Pass a connection to the worker. False if it cannot take it now."""
        descriptors = [connection.socket.fileno(), connection.journal]
        try:
            socket.send_fds(self.control, [pack(connection.kind, connection.number)], descriptors)
        except BlockingIOError:
            return False
        except OSError:
            self.draining = True
            return False
        self.connections[connection.number] = connection
        return True

    def send_command(self, kind: bytes) -> bool:
        """Send DRAIN or RELOAD. False if the worker does not receive it."""
        try:
            self.control.send(pack(kind))
        except OSError:
            return False
        return True


class WorkerMetrics:
    """Counts worker exits, in metrics beside those of the workers."""

    def __init__(self) -> None:
        # At its import, prometheus_client reads PROMETHEUS_MULTIPROC_DIR, which is set by now.
        from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess

        self.registry = CollectorRegistry()
        self.generate_latest = generate_latest
        self.deaths = Counter("drawbridge_worker_deaths", "Workers that exited.", registry=self.registry)
        help_ = "Requests of a worker that exited, taken over by another worker."
        self.taken_over = Counter("drawbridge_taken_over", help_, registry=self.registry)
        self.engine_deaths = Counter(
            "drawbridge_engine_deaths", "Engine processes that exited.", registry=self.registry
        )
        self.multiprocess = multiprocess

    def render(self) -> bytes:
        """The metrics of all processes in Prometheus text format."""
        registry = type(self.registry)()
        self.multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return self.generate_latest(registry)

    def record_exit(self, pid: int, taken_over: int) -> None:
        """Count a worker's exit, and drop the gauges of that process; its counters stay."""
        self.deaths.inc()
        self.taken_over.inc(taken_over)
        self.multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def record_engine_exit(self, pid: int) -> None:
        """Count the exit of an engine process, likewise."""
        self.engine_deaths.inc()
        self.multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
