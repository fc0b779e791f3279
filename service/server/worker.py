"""A worker: the application on connections that the supervisor passes to it.

python -m service.server.worker CONTROL INDEX COUNT SHARED
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn

from models import memory
from models.devices import choose_device
from service.app import Application, create_app
from service.auth.authenticator import create_authenticator
from service.engine.remote import RemoteEngine
from service.engine.runner import Runner
from service.engine.running import RunningRequests
from service.server.journal import Journal
from service.server.messages import ADMIN_CONNECTION, CLOSED, CONNECTION, DRAIN, ENGINE, MESSAGE, READY, RELOAD, pack
from service.server.protocol import MIN_DRAIN, HttpProtocol, uvicorn_config
from service.server.transport import JournaledReader
from service.settings import Settings
from service.telemetry import log

OVERLOAD_ACCEPT_INTERVAL = 0.05
"""Seconds between two looks at new connections while the queue is nearly full. Most of their requests will be refused,
and a refusal costs a fraction when it follows another one, and not a step that has emptied the processor's caches."""
NEARLY_FULL = 0.75
"""Share of the queue's bound."""
CLOSED_REPORT_INTERVAL = 0.02
"""Seconds from a connection's end to the report of it, which names all that ended meanwhile: the supervisor shares a
core with a worker, and each report interrupts a step."""


class WorkerServer(uvicorn.Server):
    """Uvicorn without a port: connections arrive as messages on `control`."""

    def __init__(self, app: Application, control: socket.socket) -> None:
        settings = app.settings
        super().__init__(uvicorn_config(app, settings))
        self.app, self.control = app, control
        self.server_configs = {CONNECTION: self.config, ADMIN_CONNECTION: uvicorn_config(app.admin, settings)}
        self.closed: deque[int] = deque()
        """Numbers of closed connections that the supervisor does not know of yet."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.server_configs[ADMIN_CONNECTION].load()
        self.control.setblocking(False)
        self._listen()  # engine processes, if there are any, come first: the application waits for one
        await super().startup(sockets=[])
        self.watchdog = self.loop.create_task(self.app.watch())
        self.control.send(pack(READY))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown."""
        self._exit_soon()
        super().handle_exit(sig, frame)

    def _exit_soon(self) -> None:
        """Start the shutdown; before the start exit at once, as there are no connections and may be no engine."""
        if not self.started:
            os._exit(0)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve the connections that were passed until now, and no more."""
        self.loop.remove_reader(self.control)
        self.control.shutdown(socket.SHUT_RD)  # the supervisor's next send fails, and it keeps that connection
        self._on_message()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(self.app.drain(), super().shutdown(sockets=[]))
        self.watchdog.cancel()

    async def _drain(self) -> None:
        """Finish accepted requests while new ones get 503, then exit."""
        await asyncio.gather(self.app.drain(), asyncio.sleep(MIN_DRAIN))
        self.should_exit = True

    def _on_message(self) -> None:
        """Act on the supervisor's messages. If the queue is nearly full, let the next ones gather for a while."""
        self._handle_messages()
        if not self.started:
            return
        engine = self.app.state.service.engine
        if engine.outstanding > NEARLY_FULL * engine.queue_images:
            self.loop.remove_reader(self.control)
            self.loop.call_later(OVERLOAD_ACCEPT_INTERVAL, self._listen)

    def _listen(self) -> None:
        self.loop.add_reader(self.control, self._on_message)

    def _handle_messages(self) -> None:
        for kind, number, descriptors in self._messages():
            task: asyncio.Task[Any]
            if kind == DRAIN:
                task = self.loop.create_task(self._drain())
            elif kind == RELOAD:
                task = self.loop.create_task(self.app.reload())
            elif kind == ENGINE and len(descriptors) == 2:
                task = self.loop.create_task(self._connect_engine(*descriptors))
            elif kind == ENGINE:  # this process has no descriptors left, and its successor will
                self._exit_soon()
                return
            elif len(descriptors) == 2:
                task = self.loop.create_task(self._serve_connection(kind, number, *descriptors))
            else:  # this process has no descriptors left
                for descriptor in descriptors:
                    os.close(descriptor)
                self._connection_closed(number)
                continue
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _connect_engine(self, connection: int, running: int) -> None:
        """Use an engine process."""
        assert self.app.remote is not None
        memory_of_engine = RunningRequests(running)
        os.close(running)
        await self.app.remote.connect(socket.socket(fileno=connection), memory_of_engine)

    async def _serve_connection(self, kind: bytes, number: int, descriptor: int, journal_file: int) -> None:
        """Serve a connection. Its journal may hold bytes that a dead worker received."""
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)

        def on_close() -> None:
            with contextlib.suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)  # the supervisor has it too; the client need not wait for that
            self._connection_closed(number)

        try:
            journal = Journal(journal_file)
            await self.loop.connect_accepted_socket(partial(self._protocol, kind, journal, on_close), connection)
        except OSError:
            on_close()
        finally:
            os.close(journal_file)

    def _protocol(self, kind: bytes, journal: Journal, on_close: Callable[[], None]) -> JournaledReader:
        config, direct = self.server_configs[kind], kind == CONNECTION
        state = self.lifespan.state
        protocol = HttpProtocol(config, self.server_state, state, journal, on_close, self.app, direct=direct)
        return JournaledReader(protocol, journal)

    def _messages(self) -> Iterator[tuple[bytes, int, list[int]]]:
        """The waiting messages with their descriptors. Without a supervisor, this worker exits."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE.size, 2)
                if not message:
                    self.loop.remove_reader(self.control)
                    self._exit_soon()
                    return
                yield *MESSAGE.unpack(message), descriptors

    def _connection_closed(self, number: int) -> None:
        if not self.closed:
            self.loop.call_later(CLOSED_REPORT_INTERVAL, self._report_closed)
        self.closed.append(number)

    def _report_closed(self) -> None:
        """Report all closed connections, now or when the control socket can be written again."""
        try:
            while self.closed:
                self.control.send(pack(CLOSED, self.closed[0]))
                self.closed.popleft()
        except BlockingIOError:
            self.loop.add_writer(self.control, self._report_closed)
            return
        except OSError:  # the supervisor is gone
            self.closed.clear()
        self.loop.remove_writer(self.control)


def main(control: str, index: str, count: str, shared: str, *, runner: type[Runner] = Runner) -> None:
    """Serve connections from the descriptor `control`, as worker `index` of `count`, until a signal.

    `shared` is a directory that all workers share; `runner` runs batches on the device.
    """
    memory.retain_freed_memory()
    settings = Settings()
    log.configure(settings)
    authenticator = create_authenticator(settings, Path(shared), int(index), int(count))
    if settings.http_processes:  # the engine is in another process, and so is the bound of its queue
        remote, device = RemoteEngine(settings.queue_images, int(index)), torch.device("cpu")
    else:
        remote, device = None, choose_device(settings.device, int(index))
        queue_share = -(-settings.queue_images // int(count))
        settings = settings.model_copy(update={"queue_images": max(settings.max_images, queue_share)})
    app = create_app(settings, device, authenticator, runner=runner, serve_early=True, remote=remote)
    WorkerServer(app, socket.socket(fileno=int(control))).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
