"""The front: one port, and a worker for each device that draws.

The front listens, and hands every connection to the worker that has the fewest; it never stands between a request and
its answer. A worker is a process with an engine of its own: HTTP, the batch and the model on one event loop where the
device is a CPU core, the model on a thread where it is a GPU. One worker on one GPU, one for each of eight, and one for
each core of a CPU are the same picture. (Two threads of one process that want a core each collapse.)

A worker that dies is started anew, and others go on with what it had accepted: the front keeps every connection too,
with a journal of what was sent and not answered, which the worker writes. Draws are functions of their seeds, so that
nobody can tell. Only an answer that had begun is cut off. A request whose second worker dies as well is told so: it may
be what kills them. A connection that no worker can take waits. The front needs no torch: it is there at once, and
small.

SIGTERM or SIGINT ends it: workers end what they have and refuse the rest, and until they are gone connections still
come to them. A second one ends it at once. SIGHUP has the workers take up new weights.
"""

import contextlib
import json
import logging
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from itertools import count
from pathlib import Path

from service.errors import MEDIA_TYPE, Unavailable
from service.server import journal
from service.server.journal import Journal
from service.settings import Settings

log = logging.getLogger(__name__)

READY, CLOSED = b"r", b"-"
"""What workers say: that they draw, that a connection is gone."""
CONNECTION, ADMIN_CONNECTION, DRAIN, RELOAD = b"+", b"o", b"d", b"w"
"""What they are told: here is a connection, or one to the operations' port; end; take up new weights."""
MESSAGE = struct.Struct(">cQ")
"""What is said, and the number of the connection that it is about. With a connection come two descriptors: it, and its
journal."""
WORKER_COMMAND = (sys.executable, "-m", "service.server.worker")
"""What a worker is; it gets its end of a socket pair, its number, how many there are, and a directory for all."""
SHUTTING_DOWN = "the service is shutting down; try another instance, or again in a moment"
POISON_REQUEST = (
    "two workers ended while they had this request, which may be why; ask for something else, or again later"
)
LISTEN_BACKLOG = 2048
RESERVED_DESCRIPTORS = 128
"""Descriptors that are left for other things than connections, of which each takes two."""
ACCEPT_BACKOFF = 0.02
"""Seconds without looking at the port, where no connection can be taken."""
RESTART_DELAY = 5.0
"""Seconds before a worker that could not start is tried again."""
SHUTDOWN_GRACE = 5.0
"""Seconds that workers get beyond those in which they should have ended."""
MAX_CPU_WORKERS = 8
"""Workers that a CPU gets unless told: each holds all weights."""


def pack(what: bytes, number: int = 0) -> bytes:
    """A message."""
    return MESSAGE.pack(what, number)


@dataclass(eq=False)
class Connection:
    """A caller's, until it is closed; `port` is HANDED or OPERATIONS."""

    socket: socket.socket
    port: bytes
    file: int
    """Its journal's descriptor."""
    number: int = field(default_factory=count().__next__)

    def close(self) -> None:
        os.close(self.file)
        self.socket.close()

    def reject(self, why: str) -> None:
        """Answer what was asked of it with 503, and close it."""
        body = json.dumps(Unavailable(why).body()).encode()
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            self.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.socket.recv(65536)  # what is left unread would take the answer with it
            self.socket.send(head.encode() + body)
        self.close()


def accept(listener: socket.socket, port: bytes) -> Connection:
    """The next connection that waits. Raises BlockingIOError where there is none, OSError where no more can be had."""
    file = journal.create()
    try:
        return Connection(listener.accept()[0], port, file)
    except OSError:
        os.close(file)
        raise


class Worker:
    """A process that connections are handed to."""

    def __init__(self, command: Sequence[str], number: int, count: int, shared: Path) -> None:
        self.number, self.connections = number, dict[int, Connection]()
        self.ready = self.draining = self.stale = False
        """Whether it draws, takes no more connections, began before there were new weights."""
        self.control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(number), str(count), str(shared)],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's Ctrl-C is for the front alone, which tells them
        )
        theirs.close()
        self.control.setblocking(False)

    def fileno(self) -> int:
        return self.control.fileno()

    @property
    def accepts_connections(self) -> bool:
        """Whether it is there for connections."""
        return self.ready and not self.draining

    def recv(self) -> Iterator[tuple[bytes, int]]:
        """What it says. Raises EOFError where it is dead."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    message = self.control.recv(MESSAGE.size)
                except ConnectionError:
                    message = b""
                if not message:
                    raise EOFError
                yield MESSAGE.unpack(message)

    def send_connection(self, connection: Connection) -> bool:
        """Pass a connection to it, if it has room for one more now and takes any."""
        descriptors = [connection.socket.fileno(), connection.file]
        try:
            socket.send_fds(self.control, [pack(connection.port, connection.number)], descriptors)
        except BlockingIOError:
            return False
        except OSError:
            self.draining = True
            return False
        self.connections[connection.number] = connection
        return True

    def send_command(self, what: bytes) -> bool:
        """Tell it DRAIN or RELOAD. False where it hears nothing."""
        try:
            self.control.send(pack(what))
        except OSError:
            return False
        return True


class WorkerMetrics:
    """Workers that ended and what became of their requests, as metrics beside theirs."""

    def __init__(self) -> None:
        # It decides when it is imported whether several processes count, by PROMETHEUS_MULTIPROC_DIR.
        from prometheus_client import CollectorRegistry, Counter, multiprocess

        self.registry = CollectorRegistry()
        self.count = Counter("drawbridge_worker_deaths", "Workers that ended.", registry=self.registry)
        taken_over = "Requests that another worker took over from one that ended."
        self.taken_over = Counter("drawbridge_taken_over", taken_over, registry=self.registry)
        self.multiprocess = multiprocess

    def add(self, pid: int, taken_over: int) -> None:
        """What that process held is gone; what it counted stays counted."""
        self.count.inc()
        self.taken_over.inc(taken_over)
        self.multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Supervisor:
    """Listens on sockets, each with what its connections are handed over as, and keeps `count` workers.

    `shared` is a directory for all of them; workers that are told to end get `grace` seconds. With `look` seconds,
    what lies in `weights` is looked at so often.
    """

    def __init__(
        self,
        listeners: Mapping[bytes, socket.socket],
        count: int,
        shared: Path,
        *,
        grace: float,
        weights: Path | None = None,
        poll_interval: float = 0.0,
        metrics: "WorkerMetrics | None" = None,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.listeners, self.count, self.shared, self.grace = listeners, count, shared, grace
        self.weights, self.look, self.deaths, self.command = weights, poll_interval, metrics, command
        self.signals = signal_socket((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.signals, selectors.EVENT_READ)
        self.workers: list[Worker] = []
        self.restart_at: dict[int, float] = {}
        """Numbers of workers that could not start, and when each is tried again."""
        self.waiting: deque[Connection] = deque()
        """Connections that no worker could take yet."""
        self.max_connections = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS) // 2
        """Connections that there can be at once; others wait in the kernel's queue."""
        self.accept_after = 0.0
        """Until when the port is not looked at."""
        self.shutdown_deadline: float | None = None
        """When the last worker has to be gone, since a signal said so."""
        self.looked, self.due = self._weights_fingerprint(), time.monotonic() + poll_interval
        self.seen = self.looked
        """The weights that workers have, and those at the last look."""
        self.listening = self.announced = self.startup_failed = False

    def run(self) -> int:
        """Serve until a signal, and return 0; or 1 where workers cannot start, or do not end in time."""
        for number in range(self.count):
            self._start(number)
        while not self.startup_failed:
            for key, _ in self.selector.select(self._select_timeout()):
                if isinstance(key.fileobj, Worker):
                    self._read_worker(key.fileobj)
                elif key.fileobj is not self.signals:
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]  # a listener
                elif self._handle_signals(self.signals.recv(16)):
                    return 1
            now = time.monotonic()
            if self.shutdown_deadline is not None and (not self.workers or now >= self.shutdown_deadline):
                return 1 if self.workers else 0
            for number in [number for number, due in self.restart_at.items() if due <= now]:
                del self.restart_at[number]
                self._start(number)
            if self.look and now >= self.due:
                self._poll_weights()
            if self.waiting and now >= self.accept_after:
                self._assign_connections()
            self._listen()
        return 1

    def stop(self) -> None:
        """End what is still there. Connections that nobody took any more are told so."""
        for connection in self.waiting:
            connection.reject(SHUTTING_DOWN)
        for port, listener in self.listeners.items():
            with contextlib.suppress(OSError):
                while True:
                    accept(listener, port).reject(SHUTTING_DOWN)
            listener.close()
        for worker in self.workers:
            log.error("worker %d is killed", worker.number)
            worker.process.kill()
            worker.process.wait()
            self._take_over(worker)

    def _select_timeout(self) -> float | None:
        """Seconds until there is something to do unasked."""
        now = time.monotonic()
        times = [*self.restart_at.values(), *([self.accept_after] if self.accept_after > now or self.waiting else [])]
        times += [self.due] if self.look else []
        times += [] if self.shutdown_deadline is None else [self.shutdown_deadline]
        return max(0.0, min(times) - now) if times else None

    def _handle_signals(self, numbers: bytes) -> bool:
        """Do what signals say; True where one says to end at once."""
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload()
            elif self.shutdown_deadline is not None:
                log.error("a second signal: what runs is not waited for")
                return True
            else:
                self._drain()
        return False

    def _drain(self) -> None:
        """Have all workers end what they have."""
        log.info("draining; at most %g s", self.grace)
        self.shutdown_deadline = time.monotonic() + self.grace + SHUTDOWN_GRACE
        self.restart_at.clear()
        for worker in self.workers:
            if not (worker.ready and worker.send_command(DRAIN)):
                worker.process.terminate()

    def _reload(self) -> None:
        """Have all workers take up the weights that lie there now; those that start, once they have."""
        self.looked = self.seen = self._weights_fingerprint()
        for worker in self.workers:
            worker.stale = not worker.ready
            if worker.ready and not worker.send_command(RELOAD):
                log.error("worker %d could not be told of new weights", worker.number)

    def _poll_weights(self) -> None:
        """Take up new weights once nobody is changing them any more."""
        self.due = time.monotonic() + self.look
        before, self.seen = self.seen, self._weights_fingerprint()
        if self.seen == before and self.seen != self.looked:
            self._reload()

    def _weights_fingerprint(self) -> list[tuple[str, int, int]]:
        """What tells whether weights have changed: the manifests, which come last and by a rename."""
        found = []
        for path in sorted(self.weights.glob("[!.]*/manifest.json")) if self.weights is not None and self.look else ():
            try:
                at = path.stat()
            except OSError:  # it went away just now
                continue
            found.append((path.parent.name, at.st_ino, at.st_mtime_ns))
        return found

    def _start(self, number: int) -> None:
        worker = Worker(self.command, number, self.count, self.shared)
        self.workers.append(worker)
        self.selector.register(worker, selectors.EVENT_READ)

    def _accept(self, listener: socket.socket, port: bytes) -> None:
        """Hand out every connection that waits."""
        while not self.waiting and self._has_capacity():
            try:
                connection = accept(listener, port)
            except BlockingIOError:
                return
            except OSError as error:  # it went away in the meantime, or there are too many
                log.warning("a connection could not be accepted: %s", error)
                self.accept_after = time.monotonic() + ACCEPT_BACKOFF
                return
            self.waiting.append(connection)
            self._assign_connections()

    def _has_capacity(self) -> bool:
        """Whether there can be one more connection."""
        return sum(len(worker.connections) for worker in self.workers) < self.max_connections

    def _assign_connections(self) -> None:
        """Give each connection that waits to the worker that has the fewest, until none takes any now."""
        while self.waiting:
            takers = sorted(
                (worker for worker in self.workers if worker.accepts_connections), key=lambda one: len(one.connections)
            )
            if not any(worker.send_connection(self.waiting[0]) for worker in takers):
                self.accept_after = time.monotonic() + ACCEPT_BACKOFF
                return
            self.waiting.popleft()

    def _read_worker(self, worker: Worker) -> None:
        """What a worker has to say, or that it is dead."""
        try:
            for what, number in worker.recv():
                if what == CLOSED and number in worker.connections:
                    worker.connections.pop(number).close()
                elif what == READY:
                    worker.ready = True
        except EOFError:
            self._on_worker_exit(worker)
            return
        if worker.ready and worker.stale:
            worker.stale = not worker.send_command(RELOAD)

    def _on_worker_exit(self, worker: Worker) -> None:
        """Start another in the place of a dead worker: at once, or after a pause where it could not start.

        It is hopeless if that happens before the service has begun, or when there is no other.
        """
        self.selector.unregister(worker)
        self.workers.remove(worker)
        worker.control.close()
        status = worker.process.wait()
        taken_over = self._take_over(worker)
        if self.deaths is not None:
            self.deaths.add(worker.process.pid, taken_over)
        if self.shutdown_deadline is not None:
            return
        if worker.ready:
            log.error(
                "worker %d ended with status %d, and is started anew; requests that others take over: %d",
                worker.number,
                status,
                taken_over,
            )
            self._start(worker.number)
            return
        log.error("worker %d could not start; it ended with status %d", worker.number, status)
        self.restart_at[worker.number] = time.monotonic() + RESTART_DELAY
        self.startup_failed = not (self.announced and self.workers)

    def _take_over(self, worker: Worker) -> int:
        """Have others go on with what a dead worker had, and return how many requests that are."""
        requests = 0
        for connection in worker.connections.values():
            held = Journal(connection.file)
            if not held.take_over(connection.socket) or (self.shutdown_deadline is not None and not held.length):
                connection.close()
            elif self.shutdown_deadline is not None:
                connection.reject(SHUTTING_DOWN)
            elif held.length and held.tries > 1:
                connection.reject(POISON_REQUEST)
            else:
                self.waiting.append(connection)
                requests += held.length > 0
            held.close()
        worker.connections.clear()
        return requests

    def _listen(self) -> None:
        """Accept connections while there is a worker for them; else they wait in the kernel's queue."""
        ready = [worker.ready for worker in self.workers]
        able = any(worker.accepts_connections for worker in self.workers) and (self.announced or all(ready))
        if able and not self.announced:
            self.announced = True
            at = {port: address(listener) for port, listener in self.listeners.items()}
            if ADMIN_CONNECTION in at:
                log.info("operations on http://%s", at[ADMIN_CONNECTION])
            log.info("running on http://%s (%d workers)", at[CONNECTION], self.count)
        able = able and not self.waiting and self._has_capacity() and time.monotonic() >= self.accept_after
        if able != self.listening:
            for port, listener in self.listeners.items():
                if able:
                    self.selector.register(listener, selectors.EVENT_READ, port)
                else:
                    self.selector.unregister(listener)
        self.listening = able


def address(listener: socket.socket) -> str:
    """Host and port, as a URL has them."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(settings: Settings, command: Sequence[str] = WORKER_COMMAND) -> int:
    """Serve as `settings` say until a signal, by workers that `command` starts, and return the status to exit with.

    Raises ValueError for a device that is not there.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    count = settings.workers or default_worker_count(settings)
    ports = {CONNECTION: settings.port}
    if settings.admin_port is not None:
        ports[ADMIN_CONNECTION] = settings.admin_port
    listeners = {}
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for kind, port in ports.items():
        try:
            listeners[kind] = socket.create_server((settings.host, port), family=family, backlog=LISTEN_BACKLOG)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            log.error("cannot listen on %s port %d: %s", settings.host, port, why)
            return 1
        listeners[kind].setblocking(False)
    with tempfile.TemporaryDirectory(prefix="drawbridge-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        front = Supervisor(
            listeners,
            count,
            Path(shared),
            grace=settings.drain_timeout,
            weights=settings.weights,
            poll_interval=settings.weights_poll_interval,
            metrics=WorkerMetrics(),
            command=command,
        )
        try:
            return front.run()
        finally:
            front.stop()


def default_worker_count(settings: Settings) -> int:
    """How many there are unless told: one for each GPU, else for each CPU core that a step's threads leave."""
    if settings.device == "cuda" or (settings.device == "auto" and any(map(glob, ("/dev/nvidia[0-9]*", "/dev/dxg")))):
        import torch  # only where there may be one: it takes seconds

        if torch.cuda.is_available():
            return torch.cuda.device_count()
        if settings.device == "cuda":
            raise ValueError("DRAWBRIDGE_DEVICE is cuda, and torch sees no GPU; set it to cpu or auto")
    return max(1, min(MAX_CPU_WORKERS, len(os.sched_getaffinity(0)) // settings.threads))


def signal_socket(numbers: Iterable[signal.Signals]) -> socket.socket:
    """A socket that has the number of each of these signals that comes, a byte each."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return ours
