"""The front: one port, and a worker for each device that draws.

The front listens, and hands every connection to the worker that has the fewest; it reads nothing of it, and never
stands between a request and its answer. A worker is a process with an engine of its own: HTTP, the batch and the model
on one event loop where the device is a CPU core, the model on a thread where it is a GPU. One worker on one GPU, one
for each of eight, and one for each core of a CPU are the same picture. (Two threads of one process that
want a core each collapse.)

A worker that dies is started anew, and only its own callers notice. A connection that no worker can take waits. The
front needs no torch: it is there at once, and small.
"""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from glob import glob

from service.settings import Settings

log = logging.getLogger(__name__)

READY, CLOSED, HANDED = b"r", b"-", b"+"
"""What workers say: that they draw, that a connection is gone; and what comes with a connection."""
COMMAND = (sys.executable, "-m", "service.worker")
"""What a worker is; it gets its end of a socket pair, its number, and how many there are."""
BACKLOG = 2048
REST = 0.02
"""Seconds without looking at the port, where no connection can be taken."""
PAUSE = 5.0
"""Seconds before a worker that could not start is tried again."""
MOST_CORES = 8
"""Workers that a CPU gets unless told: each holds all weights."""


class Worker:
    """A process that connections are handed to."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.open = number, 0
        self.ready = self.draining = False
        self.control, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [*COMMAND, str(theirs.fileno()), str(number), str(count)],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's Ctrl-C is for the front alone, which tells them
        )
        theirs.close()
        self.control.setblocking(False)

    def fileno(self) -> int:
        return self.control.fileno()

    @property
    def takes(self) -> bool:
        """Whether it is there for connections."""
        return self.ready and not self.draining

    def hear(self) -> bytes:
        """What it says; nothing where it is dead."""
        try:
            return self.control.recv(4096)
        except ConnectionError:
            return b""

    def hand(self, connection: socket.socket) -> bool:
        """Give it `connection`; False where it takes no more, or is so busy that it has hundreds to take."""
        try:
            socket.send_fds(self.control, [HANDED], [connection.fileno()])
        except BlockingIOError:
            return False
        except OSError:
            self.draining = True
            return False
        self.open += 1
        return True


class Front:
    """Listens on `listener` and keeps `count` workers."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self.listener, self.count = listener, count
        self.selector = selectors.DefaultSelector()
        self.selector.register(signals(), selectors.EVENT_READ)
        self.workers: list[Worker] = []
        self.absent: dict[int, float] = {}
        """Numbers of workers that could not start, and when each is tried again."""
        self.held: socket.socket | None = None
        """A connection that no worker could take yet."""
        self.rest = 0.0
        """Until when the port is not looked at."""
        self.listening = self.announced = self.hopeless = False

    def run(self) -> int:
        """Serve until a signal, and return 0; or 1 where workers cannot start."""
        for number in range(self.count):
            self._start(number)
        while not self.hopeless:
            for key, _ in self.selector.select(self._patience()):
                if isinstance(key.fileobj, Worker):
                    self._hear(key.fileobj)
                elif key.fileobj is self.listener:
                    self._accept()
                else:
                    return 0
            now = time.monotonic()
            for number in [number for number, due in self.absent.items() if due <= now]:
                del self.absent[number]
                self._start(number)
            if self.held is not None and now >= self.rest:
                self._hand(self.held)
            self._listen()
        return 1

    def stop(self, grace: float) -> None:
        """Refuse new connections, let the workers end what they have for `grace` seconds, and end."""
        self.listener.close()
        if self.held is not None:
            self.held.close()
        for worker in self.workers:
            worker.process.terminate()
        end = time.monotonic() + grace
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d did not end in time, and is killed", worker.number)
                worker.process.kill()
                worker.process.wait()

    def _patience(self) -> float | None:
        """Seconds until there is something to do unasked."""
        now = time.monotonic()
        times = [*self.absent.values(), *([self.rest] if self.rest > now or self.held is not None else [])]
        return max(0.0, min(times) - now) if times else None

    def _start(self, number: int) -> None:
        worker = Worker(number, self.count)
        self.workers.append(worker)
        self.selector.register(worker, selectors.EVENT_READ)

    def _accept(self) -> None:
        """Hand out every connection that waits."""
        while self.held is None:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # it went away in the meantime, or there are too many
                log.warning("a connection could not be accepted: %s", error)
                self.rest = time.monotonic() + REST
                return
            self._hand(connection)

    def _hand(self, connection: socket.socket) -> None:
        """Give `connection` to the worker that has the fewest, or hold it where none takes it now."""
        takers = sorted((worker for worker in self.workers if worker.takes), key=lambda worker: worker.open)
        if any(worker.hand(connection) for worker in takers):
            connection.close()
            self.held = None
        else:
            self.held = connection
            self.rest = time.monotonic() + REST

    def _hear(self, worker: Worker) -> None:
        """What a worker has to say, or that it is dead."""
        said = worker.hear()
        worker.open -= said.count(CLOSED)
        worker.ready = worker.ready or READY in said
        if not said:
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """Start another in the place of a dead worker: at once, or after a pause where it could not start.

        It is hopeless if that happens before the service has begun, or when there is no other.
        """
        self.selector.unregister(worker)
        self.workers.remove(worker)
        worker.control.close()
        status = worker.process.wait()
        if worker.ready:
            log.error("worker %d ended with status %d, and is started anew", worker.number, status)
            self._start(worker.number)
            return
        log.error("worker %d could not start; it ended with status %d", worker.number, status)
        self.absent[worker.number] = time.monotonic() + PAUSE
        self.hopeless = not (self.announced and self.workers)

    def _listen(self) -> None:
        """Accept connections while there is a worker for them; else they wait in the kernel's queue."""
        ready = [worker.ready for worker in self.workers]
        able = any(worker.takes for worker in self.workers) and (self.announced or all(ready))
        if able and not self.announced:
            self.announced = True
            host, port = self.listener.getsockname()[:2]
            log.info("running on http://%s:%d (%d workers)", f"[{host}]" if ":" in host else host, port, self.count)
        able = able and self.held is None and time.monotonic() >= self.rest
        if able and not self.listening:
            self.selector.register(self.listener, selectors.EVENT_READ)
        elif self.listening and not able:
            self.selector.unregister(self.listener)
        self.listening = able


def serve(settings: Settings) -> int:
    """Serve as `settings` say until a signal, and return the status to exit with.

    Raises ValueError for a device that is not there.
    """
    count = settings.workers or workers(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        log.error("cannot listen on %s port %d: %s", settings.host, settings.port, why)
        return 1
    listener.setblocking(False)
    front = Front(listener, count)
    try:
        return front.run()
    finally:
        front.stop(settings.drain_seconds + 5)


def workers(settings: Settings) -> int:
    """How many there are unless told: one for each GPU, else for each CPU core that a step's threads leave."""
    if settings.device == "cuda" or (settings.device == "auto" and any(map(glob, ("/dev/nvidia[0-9]*", "/dev/dxg")))):
        import torch  # only where there may be one: it takes seconds

        if torch.cuda.is_available():
            return torch.cuda.device_count()
        if settings.device == "cuda":
            raise ValueError("DRAWBRIDGE_DEVICE is cuda, and torch sees no GPU; set it to cpu or auto")
    return max(1, min(MOST_CORES, len(os.sched_getaffinity(0)) // settings.threads))


def signals(numbers: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> socket.socket:
    """A socket that can be read once one of these signals has come."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return ours
