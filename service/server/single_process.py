"""The service in one process, where the system lacks what the supervisor needs: macOS, Windows, some containers.

It has everything but connection hand-over: it is plain uvicorn with this project's HTTP protocol, and nothing replaces
the process if it dies.
"""

import asyncio
import logging
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path

import uvicorn

from models import memory
from models.devices import choose_device
from service.app import Application, create_app
from service.auth.authenticator import create_authenticator
from service.engine.request import noop
from service.server.listen import address
from service.server.protocol import HttpProtocol, uvicorn_config
from service.server.transport import NoRecord
from service.server.weights_poll import WeightsPoll
from service.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often to ask whether a poll of the weights is due."""


def serve(settings: Settings, main: socket.socket, admin: socket.socket | None) -> int:
    """Serve on the listening sockets until a signal, and return the exit status."""
    memory.retain_freed_memory()
    with tempfile.TemporaryDirectory(prefix="drawbridge-") as shared:
        authenticator = create_authenticator(settings, Path(shared))
        app = create_app(settings, choose_device(settings.device), authenticator)
        server = SingleServer(app, main, admin)
        server.run(sockets=[main])
        return 0 if server.started else 1


class SingleServer(uvicorn.Server):
    """Uvicorn with the admin port, reloads and the watchdog."""

    def __init__(self, app: Application, main: socket.socket, admin: socket.socket | None) -> None:
        self.app, self.main, self.admin = app, main, admin
        protocol = partial(HttpProtocol, record=NoRecord(), on_close=noop, application=app)
        super().__init__(uvicorn_config(app, app.settings, http=protocol))
        self.admin_protocol = partial(protocol, direct=False)
        self.tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        if self.admin is not None:
            self.servers.append(await loop.create_server(self._admin_connection, sock=self.admin))
            log.info("admin port on http://%s", address(self.admin))
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        self.tasks = [loop.create_task(self.app.watch()), loop.create_task(self._poll_weights())]
        log.info("running on http://%s (1 process)", address(self.main))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(self.app.drain(), super().shutdown(sockets))
        for task in self.tasks:
            task.cancel()

    def _admin_connection(self) -> HttpProtocol:
        config = uvicorn_config(self.app.admin, self.app.settings)
        config.load()
        return self.admin_protocol(config, self.server_state, self.lifespan.state)

    def _reload(self) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.app.reload()))

    async def _poll_weights(self) -> None:
        settings = self.app.settings
        poll = WeightsPoll(settings.weights, settings.weights_poll_interval)
        while poll.interval:
            await asyncio.sleep(min(POLL_SECONDS, poll.interval))
            if poll.changed():
                poll.mark_loaded()
                await self.app.reload()
