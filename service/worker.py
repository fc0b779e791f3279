"""A worker: the application on connections that the front hands it. `python -m service.worker CONTROL NUMBER COUNT`."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from models import memory
from service import log
from service.app import choose_device, create_app
from service.front import CLOSED, READY
from service.settings import Settings


class Server(uvicorn.Server):
    """Uvicorn without a port: connections come, one a message, through `control`."""

    def __init__(self, config: uvicorn.Config, control: socket.socket, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self.control, self.drain = control, drain
        self.gone = 0
        """Connections that are gone, and the front has not been told."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self.loop = asyncio.get_running_loop()
        self.taking: set[asyncio.Task[object]] = set()
        self.control.setblocking(False)
        self.loop.add_reader(self.control, self._take)
        self.control.send(READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve what was handed over until now, and nothing more."""
        self.loop.remove_reader(self.control)
        self.control.shutdown(socket.SHUT_RD)  # the front hears of it when it hands over the next one, and keeps it
        self._take()
        await asyncio.gather(*self.taking, return_exceptions=True)
        await asyncio.gather(self.drain(), super().shutdown(sockets=[]))

    def _take(self) -> None:
        """Serve the connections that have come."""
        for descriptor in self._handed():
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            task = self.loop.create_task(self.loop.connect_accepted_socket(self._protocol, connection))
            self.taking.add(task)
            task.add_done_callback(self._taken)

    def _taken(self, task: "asyncio.Task[object]") -> None:
        self.taking.discard(task)
        if task.cancelled() or task.exception():
            self.lose()

    def _handed(self) -> Iterator[int]:
        """The descriptors that wait; without a front, there is nothing more to serve."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
                if not message:
                    self.loop.remove_reader(self.control)
                    self.should_exit = True
                    return
                if not descriptors:  # this process has as many as it may have
                    self.lose()
                yield from descriptors

    def lose(self) -> None:
        """A connection is gone."""
        self.gone += 1
        self._tell()

    def _tell(self) -> None:
        """Tell the front of all that are gone, at once or when it listens again."""
        try:
            self.gone -= self.control.send(CLOSED * self.gone)
        except BlockingIOError:
            pass
        except OSError:  # there is no front any more
            self.gone = 0
        if self.gone:
            self.loop.add_writer(self.control, self._tell)
        else:
            self.loop.remove_writer(self.control)

    def _protocol(self) -> "Connection":
        return Connection(self.config, self.server_state, self.lifespan.state, self.lose)


class Connection(HttpToolsProtocol):
    """One that says when it is lost."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost()


def main(control: int, number: int, count: int) -> None:
    """Serve what comes from the descriptor `control`, as worker `number` of `count`, until a signal."""
    memory.keep()
    settings = Settings()
    settings = settings.model_copy(
        update={"queue_images": max(settings.max_images, -(-settings.queue_images // count))}
    )
    log.configure(settings)
    app = create_app(settings, device=choose_device(settings.device, number))
    config = uvicorn.Config(
        app,
        log_config=None,
        ws="none",
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    Server(config, socket.socket(fileno=control), app.drain).run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
