"""The supervisor: it listens on the port and passes each connection to a worker process.

The supervisor never reads a byte of a connection, but for probes while no worker can answer them. A worker has HTTP,
queue and engine in one process, on one event loop if the device is a CPU core, with a thread for the engine on a GPU.
There is one worker per GPU, or one per CPU core: two threads of one process that each need a core slow each other down.
In the other layout, for GPUs, workers have HTTP alone, and an engine process per device serves all of them.

If a worker dies, the supervisor starts another, and the remaining workers take over its connections: the supervisor
keeps each connection and its journal (`service/server/journal.py`). Images are functions of their seeds, so the client
cannot tell. Only a response that has started is cut off. A request that was in two dying workers gets 503 and is not
retried. While no worker can take connections, as at the start, the supervisor looks at the first bytes of each without
reading them: it answers probes itself, and other connections wait. The supervisor does not import torch: it starts at
once and stays small.

If an engine process dies, the supervisor starts another and connects the workers with it. They still have the requests,
and send them again (`service/engine/remote.py`).

SIGTERM and SIGINT drain the workers, which refuse new requests until they exit; a second signal exits at once. SIGHUP
reloads the weights.
"""

import contextlib
import logging
import resource
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from service.auth.authenticator import release_worker
from service.errors import POISON_REQUEST, Unavailable
from service.server.journal import Journal
from service.server.listen import address
from service.server.messages import ADMIN_CONNECTION, CLOSED, CONNECTION, DRAIN, READY, RELOAD
from service.server.weights_poll import WeightsPoll
from service.server.worker_process import (
    ENGINE_COMMAND,
    WORKER_COMMAND,
    Connection,
    EngineProcess,
    WorkerMetrics,
    WorkerProcess,
    accept,
)

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the service is shutting down; try another instance, or retry in a moment"
RESERVED_DESCRIPTORS = 128
"""Descriptors that are not used for connections, each of which takes two."""
ACCEPT_BACKOFF = 0.02
"""Seconds without accepting connections after no worker could take one."""
RESTART_DELAY = 5.0
"""Seconds until a worker that failed to start is started again."""
SHUTDOWN_GRACE = 5.0
"""Seconds beyond the drain timeout after which workers are killed."""


class Supervisor:
    """Listens on sockets, each with the kind of its connections, and keeps `count` workers.

    Beside them it keeps `engines` engine processes; if there are none, each worker has an engine.
    `shared` is a directory that all workers share. Workers have `drain_timeout` seconds to drain. `weights` says when
    to reload without a signal. `probes` are the kind of the connections with probes, and a function that returns the
    response to a request's first bytes, or None if it is no probe.
    """

    def __init__(
        self,
        listeners: Mapping[bytes, socket.socket],
        count: int,
        shared: Path,
        *,
        drain_timeout: float,
        weights: WeightsPoll | None = None,
        metrics: WorkerMetrics | None = None,
        probes: tuple[bytes, Callable[[bytes], bytes | None]] | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        engines: int = 0,
        engine_command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        self.listeners, self.count, self.shared, self.drain_timeout = listeners, count, shared, drain_timeout
        self.weights, self.metrics, self.probes, self.command = weights, metrics, probes, command
        self.engine_count, self.engine_command = engines, engine_command
        self.signals = signal_socket((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.signals, selectors.EVENT_READ)
        self.workers: list[WorkerProcess] = []
        self.engines: list[EngineProcess] = []
        self.unconnected: deque[tuple[EngineProcess, WorkerProcess]] = deque()
        """Engine processes and workers that could not be connected yet."""
        self.restart_at: dict[tuple[Callable[[int], None], int], float] = {}
        """When to restart processes that failed to start, by the method that does so and their index."""
        self.waiting: deque[Connection] = deque()
        """Connections that no worker could take yet."""
        self.silent: set[Connection] = set()
        """Those of them on which nothing was seen yet."""
        self.max_connections = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS) // 2
        """Connections at once; more wait in the kernel's queue."""
        self.accept_after = 0.0
        """No connection is accepted before this time."""
        self.shutdown_deadline: float | None = None
        """When remaining workers are killed, once a signal has started the shutdown."""
        self.listening = self.announced = self.startup_failed = False

    def run(self) -> int:
        """Serve until a signal. Returns the exit status: 0, or 1 if workers cannot start or do not exit in time."""
        for index in range(self.engine_count):
            self._start_engine(index)
        for index in range(self.count):
            self._start(index)
        self._listen()
        while not self.startup_failed:
            for key, _ in self.selector.select(self._select_timeout()):
                if isinstance(key.fileobj, WorkerProcess):
                    self._read_worker(key.fileobj)
                elif isinstance(key.fileobj, EngineProcess):
                    self._read_engine(key.fileobj)
                elif isinstance(key.data, Connection):
                    self._look_at(key.data)
                elif key.fileobj is not self.signals:
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]  # a listener
                elif self._handle_signals(self.signals.recv(16)):
                    return 1
            now = time.monotonic()
            if self.shutdown_deadline is not None and (not self.workers or now >= self.shutdown_deadline):
                return 1 if self.workers else 0
            for start, index in [key for key, due in self.restart_at.items() if due <= now]:
                del self.restart_at[start, index]
                start(index)
            self._connect()
            if self.weights is not None and self.weights.changed():
                self._reload()
            if self.waiting and now >= self.accept_after and self._can_assign():
                self._assign_connections()
            self._listen()
        return 1

    def stop(self) -> None:
        """Kill remaining workers, and respond with 503 on connections that no worker has."""
        for connection in self.waiting:
            connection.reject(Unavailable(SHUTTING_DOWN, headers={"Retry-After": "5"}))
        for kind, listener in self.listeners.items():
            with contextlib.suppress(OSError):
                while True:
                    accept(listener, kind).reject(Unavailable(SHUTTING_DOWN, headers={"Retry-After": "5"}))
            listener.close()
        for worker in self.workers:
            log.error("killing worker %d", worker.index)
            worker.process.kill()
            worker.process.wait()
            self._take_over(worker)
        for engine in self.engines:
            engine.process.kill()
            engine.wait()

    def _select_timeout(self) -> float | None:
        """Seconds until something is due."""
        now = time.monotonic()
        times = [*self.restart_at.values()]
        times += [self.accept_after] if self.accept_after > now or (self.waiting and self._can_assign()) else []
        times += [now + ACCEPT_BACKOFF] if self.unconnected else []
        times += [self.weights.due] if self.weights is not None and self.weights.interval else []
        times += [] if self.shutdown_deadline is None else [self.shutdown_deadline]
        return max(0.0, min(times) - now) if times else None

    # -- signals -------------------------------------------------------------------------------------------------------

    def _handle_signals(self, numbers: bytes) -> bool:
        """Act on signals; True if one of them means to exit at once."""
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload()
            elif self.shutdown_deadline is not None:
                log.error("second signal: exiting without waiting for requests in progress")
                return True
            else:
                self._drain()
        return False

    def _drain(self) -> None:
        """Start the shutdown."""
        log.info("draining for at most %g s", self.drain_timeout)
        self.shutdown_deadline = time.monotonic() + self.drain_timeout + SHUTDOWN_GRACE
        self.restart_at = {key: due for key, due in self.restart_at.items() if key[0] == self._start_engine}
        for worker in self.workers:
            if not (worker.ready and worker.send_command(DRAIN)):
                worker.process.terminate()

    def _reload(self) -> None:
        """Make all workers reload their weights; a starting worker does so once it is ready."""
        if self.weights is not None:
            self.weights.mark_loaded()
        for worker in self.workers:
            worker.stale = not worker.ready
            if worker.ready and not worker.send_command(RELOAD):
                log.error("worker %d did not receive the command to reload weights", worker.index)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Accept connections, unless they must wait in the kernel's queue until workers have taken others."""
        if self._can_assign() and not self.announced:
            self.announced = True
            addresses = {kind: address(listener) for kind, listener in self.listeners.items()}
            if ADMIN_CONNECTION in addresses:
                log.info("admin port on http://%s", addresses[ADMIN_CONNECTION])
            engines = f", {self.engine_count} engine processes" if self.engine_count else ""
            log.info("running on http://%s (%d workers%s)", addresses[CONNECTION], self.count, engines)
        able = self._has_capacity() and time.monotonic() >= self.accept_after
        if able != self.listening:
            for kind, listener in self.listeners.items():
                if able:
                    self.selector.register(listener, selectors.EVENT_READ, kind)
                else:
                    self.selector.unregister(listener)
        self.listening = able

    def _accept(self, listener: socket.socket, kind: bytes) -> None:
        """Accept a new connection, and pass it to a worker, or look for a probe on it.

        The selector reports the listener again if more connections wait.
        """
        if not self._has_capacity():
            return
        try:
            connection = accept(listener, kind)
        except BlockingIOError:
            return
        except OSError as error:  # the client closed it already, or there are too many descriptors
            log.warning("could not accept a connection: %s", error)
            self.accept_after = time.monotonic() + ACCEPT_BACKOFF
            return
        self.waiting.append(connection)
        if self._can_assign():
            self._assign_connections()
        elif self.probes is not None and kind == self.probes[0]:
            self.silent.add(connection)
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _has_capacity(self) -> bool:
        """Whether another connection can be accepted: after one that workers cannot take now, none is."""
        if self.waiting and self._can_assign():
            return False
        return len(self.waiting) + sum(len(worker.connections) for worker in self.workers) < self.max_connections

    def _can_assign(self) -> bool:
        """Whether connections are passed to workers: at the start once all workers are ready."""
        takers = any(worker.accepts_connections for worker in self.workers)
        return takers and (self.announced or all(worker.ready for worker in self.workers))

    def _look_at(self, connection: Connection) -> None:
        """Answer a waiting connection if its first bytes are a probe; otherwise it goes on waiting."""
        head = connection.peek() if connection in self.silent else None
        if head is None:
            return
        self._forget(connection)
        assert self.probes is not None
        response = self.probes[1](head)
        if response is not None:
            self.waiting.remove(connection)
            connection.respond(response)
        elif not head:
            self.waiting.remove(connection)
            connection.close()

    def _forget(self, connection: Connection) -> None:
        """Do not look at a connection any more."""
        if connection in self.silent:
            self.silent.remove(connection)
            self.selector.unregister(connection.socket)

    def _assign_connections(self) -> None:
        """Pass each waiting connection to the worker with the fewest, until no worker can take one."""
        while self.waiting:
            takers = sorted(
                (worker for worker in self.workers if worker.accepts_connections),
                key=lambda worker: len(worker.connections),
            )
            if not any(worker.send_connection(self.waiting[0]) for worker in takers):
                self.accept_after = time.monotonic() + ACCEPT_BACKOFF
                return
            self._forget(self.waiting.popleft())

    # -- workers -------------------------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        worker = WorkerProcess(self.command, index, self.count, self.shared)
        self.workers.append(worker)
        self.selector.register(worker, selectors.EVENT_READ)
        self.unconnected += [(engine, worker) for engine in self.engines]
        self._connect()

    def _read_worker(self, worker: WorkerProcess) -> None:
        """Act on a worker's messages, or on its exit."""
        try:
            for kind, number in worker.recv():
                if kind == CLOSED and number in worker.connections:
                    worker.connections.pop(number).close()
                elif kind == READY:
                    worker.ready = True
        except EOFError:
            self._on_worker_exit(worker)
            return
        if worker.ready and worker.stale:
            worker.stale = not worker.send_command(RELOAD)

    def _on_worker_exit(self, worker: WorkerProcess) -> None:
        """Replace a worker: at once, or after a delay if it had never been ready.

        The service fails if a worker cannot start before any has served, or while there is no other.
        """
        self.selector.unregister(worker)
        self.workers.remove(worker)
        status = worker.wait()
        release_worker(self.shared, worker.index)
        taken_over = self._take_over(worker)
        if self.metrics is not None:
            self.metrics.record_exit(worker.process.pid, taken_over)
        if self.shutdown_deadline is not None:
            return
        if worker.ready:
            log.error(
                "worker %d exited with status %d and is restarted; requests taken over by other workers: %d",
                worker.index,
                status,
                taken_over,
            )
            self._start(worker.index)
            return
        log.error("worker %d failed to start; it exited with status %d", worker.index, status)
        self.restart_at[self._start, worker.index] = time.monotonic() + RESTART_DELAY
        self.startup_failed = not (self.announced and self.workers)

    def _take_over(self, worker: WorkerProcess) -> int:
        """Let other workers continue with a dead worker's connections. Returns the number of requests taken over."""
        requests = 0
        shutting_down = self.shutdown_deadline is not None
        for connection in worker.connections.values():
            journal = Journal(connection.journal)
            if not journal.take_over(connection.socket) or (shutting_down and not journal.length):
                connection.close()
            elif shutting_down:
                connection.reject(Unavailable(SHUTTING_DOWN, headers={"Retry-After": "5"}))
            elif journal.length and journal.tries > 1:
                connection.reject(Unavailable(POISON_REQUEST, headers={"Retry-After": "5"}))
            else:
                self.waiting.append(connection)
                requests += journal.length > 0
            journal.close()
        worker.connections.clear()
        return requests

    # -- engine processes ----------------------------------------------------------------------------------------------

    def _start_engine(self, index: int) -> None:
        engine = EngineProcess(self.engine_command, index, self.engine_count)
        self.engines.append(engine)
        self.selector.register(engine, selectors.EVENT_READ)
        self.unconnected += [(engine, worker) for worker in self.workers]
        self._connect()

    def _connect(self) -> None:
        """Connect engine processes and workers that are not connected yet, as far as they can take the message."""
        pairs, self.unconnected = self.unconnected, deque()
        for engine, worker in pairs:
            if engine in self.engines and worker in self.workers and not engine.connect(worker):
                self.unconnected.append((engine, worker))

    def _read_engine(self, engine: EngineProcess) -> None:
        """Act on an engine process's messages, or on its exit."""
        try:
            for kind, _ in engine.recv():
                engine.ready = engine.ready or kind == READY
        except EOFError:
            self._on_engine_exit(engine)

    def _on_engine_exit(self, engine: EngineProcess) -> None:
        """Replace an engine process, like a worker."""
        self.selector.unregister(engine)
        self.engines.remove(engine)
        status = engine.wait()
        if self.metrics is not None:
            self.metrics.record_engine_exit(engine.process.pid)
        if engine.ready:
            log.error("engine process %d exited with status %d and is restarted", engine.index, status)
            self._start_engine(engine.index)
            return
        log.error("engine process %d failed to start; it exited with status %d", engine.index, status)
        self.restart_at[self._start_engine, engine.index] = time.monotonic() + RESTART_DELAY
        self.startup_failed = not (self.announced and self.engines)


def signal_socket(numbers: Iterable[signal.Signals]) -> socket.socket:
    """A socket that receives the number of each of these signals, as a byte."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return ours


def raise_descriptor_limit() -> None:
    """Allow this process and its workers as many descriptors as the system permits."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
