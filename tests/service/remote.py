"""Applications whose engine is behind a socket, as in the layout with an engine process, here in one process."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch

from service.app import Application, create_app
from service.engine.catalog import Catalog
from service.engine.engine import EngineObserver
from service.engine.host import Client, EngineHost
from service.engine.remote import RemoteEngine
from service.engine.running import SIZE, RunningRequests
from service.engine.setup import create_engine, create_loop
from service.settings import Settings


class EngineSide:
    """An engine and its host."""

    def __init__(self, settings: Settings) -> None:
        host: EngineHost

        def serve(catalog: Catalog) -> None:
            host.serve(catalog)

        self.file = os.memfd_create("running")
        os.ftruncate(self.file, SIZE)
        device = torch.device("cpu")
        self.engine, self.loader, scope = create_engine(settings, device, EngineObserver(), serve)
        self.host = host = EngineHost(self.engine, self.loader, scope, RunningRequests(self.file))
        self.loop = create_loop(self.engine, device)
        self.names = (settings.unconditional_model, settings.conditional_model)

    async def start(self) -> None:
        await self.loop.start()
        await self.loader.start(self.names)
        self.statuses = asyncio.create_task(self.host.send_statuses())

    async def connect(self, remote: RemoteEngine) -> None:
        """Connect an HTTP process."""
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(partial(Client, self.host), sock=theirs)
        await remote.connect(ours, RunningRequests(self.file))

    async def die(self) -> None:
        """End like a killed process: the connections close, and nothing more is said."""
        self.loop.task.cancel()  # type: ignore[attr-defined]  # the event loop's
        self.statuses.cancel()
        for client in list(self.host.clients):
            assert client.transport is not None
            client.transport.abort()
        await self.loader.close()
        await asyncio.to_thread(self.loader.shutdown)
        os.close(self.file)
        await asyncio.sleep(0)  # the transports close their sockets


@asynccontextmanager
async def engine_side(settings: Settings) -> AsyncIterator[EngineSide]:
    """An engine until the block ends."""
    side = EngineSide(settings)
    await side.start()
    try:
        yield side
    finally:
        if not side.statuses.cancelled() and not side.statuses.cancelling():
            await side.die()


@asynccontextmanager
async def remote_app(settings: Settings, *sides: EngineSide, index: int = 0) -> AsyncIterator[Application]:
    """An application that uses the engines of `sides`."""
    remote = RemoteEngine(settings.queue_images, index)
    app = create_app(settings, torch.device("cpu"), remote=remote)
    for side in sides:
        await side.connect(remote)
    async with app.router.lifespan_context(app):
        yield app
    await asyncio.sleep(0)  # the transports close their sockets
