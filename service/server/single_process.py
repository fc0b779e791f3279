"""The service in one process, where the system lacks what the supervisor needs: macOS, Windows, some containers.

It has everything but connection hand-over: it is plain uvicorn with this project's HTTP protocol, and nothing replaces
the process if it dies.
"""

import asyncio
import logging
import os
import signal
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from models import memory
from models.devices import choose_device
from service.app import Application, create_app
from service.auth.authenticator import create_authenticator
from service.engine.request import noop
from service.server.listen import LISTEN_BACKLOG, address
from service.server.protocol import MIN_DRAIN, HttpProtocol, uvicorn_config
from service.server.transport import NoRecord
from service.server.weights_poll import WeightsPoll
from service.settings import Settings

log = logging.getLogger(__name__)


def serve(settings: Settings, main: socket.socket, admin: socket.socket | None) -> int:
    """Serve on the listening sockets until a signal, and return the exit status."""
    memory.retain_freed_memory()
    # Windows cannot remove the counters of keys while they are open.
    with tempfile.TemporaryDirectory(prefix="drawbridge-", ignore_cleanup_errors=True) as shared:
        authenticator = create_authenticator(settings, Path(shared))
        app = create_app(settings, choose_device(settings.device), authenticator, serve_early=True)
        SingleServer(app, main, admin).run()
    return 0


class SingleServer(uvicorn.Server):
    """Uvicorn with the admin port, reloads and the watchdog."""

    def __init__(self, app: Application, main: socket.socket, admin: socket.socket | None) -> None:
        super().__init__(uvicorn_config(app, app.settings))
        self.app, self.main, self.admin = app, main, admin
        self.weights = WeightsPoll(app.settings.weights, app.settings.weights_poll_interval)
        self.tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        await self._listen(self.main, self.config, direct=True)
        if self.admin is not None:
            await self._listen(self.admin, uvicorn_config(self.app.admin, self.app.settings), direct=False)
            log.info("admin port on http://%s", address(self.admin))
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        self.watchers = [loop.create_task(self.app.watch()), loop.create_task(self._poll_weights())]
        log.info("running on http://%s (1 process)", address(self.main))

    async def _listen(self, listener: socket.socket, config: uvicorn.Config, *, direct: bool) -> None:
        protocol = partial(
            HttpProtocol, config, self.server_state, self.lifespan.state, NoRecord(), noop, self.app, direct=direct
        )
        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_server(protocol, sock=listener, backlog=LISTEN_BACKLOG))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests while new ones get 503, then close all connections."""
        log.info("draining for at most %g s", self.app.settings.drain_timeout)
        await asyncio.gather(self.app.drain(), asyncio.sleep(MIN_DRAIN))
        await super().shutdown()
        for task in self.watchers:
            task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown at the first signal. Exit at once at a second one."""
        if self.should_exit:
            log.error("second signal: exiting without waiting for requests in progress")
            os._exit(1)
        self.should_exit = True

    def _reload(self) -> None:
        self.weights.mark_loaded()
        task = asyncio.get_running_loop().create_task(self.app.reload())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _poll_weights(self) -> None:
        while self.weights.interval:
            await asyncio.sleep(max(0.0, self.weights.due - time.monotonic()))
            if self.weights.changed():
                self._reload()
