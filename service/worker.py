"""A worker: the application on connections that the front hands it. `python -m service.worker CONTROL NUMBER COUNT`."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import log
from service.app import choose_device, create_app
from service.front import CLOSED, READY
from service.settings import Settings


class Server(uvicorn.Server):
    """Uvicorn without a port: connections come, one a message, through `control`."""

    def __init__(self, config: uvicorn.Config, control: socket.socket) -> None:
        super().__init__(config)
        self.control = control

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self.loop = asyncio.get_running_loop()
        self.taking: set[asyncio.Task[object]] = set()
        self.control.setblocking(False)
        self.loop.add_reader(self.control, self._take)
        self.control.send(READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop.remove_reader(self.control)
        await super().shutdown(sockets=[])

    def _take(self) -> None:
        """Serve the connections that have come."""
        for descriptor in self._handed():
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            task = self.loop.create_task(self.loop.connect_accepted_socket(self._protocol, connection))
            self.taking.add(task)
            task.add_done_callback(self.taking.discard)

    def _handed(self) -> Iterator[int]:
        """The descriptors that wait; without a front, there is nothing more to serve."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
                if not message:
                    self.loop.remove_reader(self.control)
                    self.should_exit = True
                    return
                yield from descriptors

    def _protocol(self) -> "Connection":
        return Connection(self.config, self.server_state, self.lifespan.state, self.control)


class Connection(HttpToolsProtocol):
    """One that tells the front when it is gone."""

    def __init__(
        self, config: uvicorn.Config, server_state: object, app_state: dict[str, object], control: socket.socket
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)  # type: ignore[arg-type]
        self.control = control

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        with contextlib.suppress(OSError):  # the front is gone, and so shall we be
            self.control.send(CLOSED)


def main(control: int, number: int, count: int) -> None:
    """Serve what comes from the descriptor `control`, as worker `number` of `count`, until a signal."""
    settings = Settings()
    settings = settings.model_copy(
        update={"queue_images": max(settings.max_images, -(-settings.queue_images // count))}
    )
    log.configure(settings)
    config = uvicorn.Config(
        create_app(settings, device=choose_device(settings.device, number)),
        log_config=None,
        ws="none",
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    Server(config, socket.socket(fileno=control)).run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
