"""An HTTP server for an application, in the test's own process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from uvicorn.server import ServerState

from service.app import Application
from service.engine.request import noop
from service.server.protocol import HttpProtocol, uvicorn_config
from service.server.transport import ConnectionRecord, NoRecord


@asynccontextmanager
async def listen(
    app: Application, *, direct: bool = True, record: ConnectionRecord | None = None
) -> AsyncIterator[int]:
    """The port of an HTTP server for `app`, which responds directly where it can if `direct`."""
    config, state = uvicorn_config(app, app.settings), ServerState()
    config.load()
    protocol = partial(HttpProtocol, config, state, {}, record or NoRecord(), noop, app, direct=direct)
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
