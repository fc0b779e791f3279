"""Waiting for the engine while watching whether the client is still connected."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from service.engine.interface import RequestEngine
from service.engine.request import Request, Ticket
from service.errors import Problem
from service.generation.pending import PendingGeneration
from service.telemetry.request_context import RequestContext

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

WATCH_AFTER = 0.05
"""Seconds after which a request's connection is watched. For shorter requests watching costs more than it saves."""


class DisconnectMonitor:
    """Starts to watch the connections of requests that are still running after WATCH_AFTER seconds.

    One timer serves all requests: most are finished by then and never needed one.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, AwaitedGeneration]] = deque()

    def add(self, pending: "AwaitedGeneration") -> None:
        """Watch the connection of `pending` if it still runs in a while."""
        if not self.waiting:
            pending.loop.call_later(WATCH_AFTER, self._check, pending.loop)
        self.waiting.append((pending.loop.time() + WATCH_AFTER, pending))

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self.waiting and self.waiting[0][0] <= now:
            self.waiting.popleft()[1].watch_connection()
        if self.waiting:
            loop.call_later(self.waiting[0][0] - now, self._check, loop)


class AwaitedGeneration(PendingGeneration):
    """A pending generation as an async context whose value is the ticket.

    The request ends with the block, or when its client disconnects.
    """

    def __init__(
        self,
        engine: RequestEngine,
        request: Request,
        context: RequestContext,
        receive: Receive,
        monitor: DisconnectMonitor,
    ) -> None:
        super().__init__(engine, request, context)
        self.receive, self.monitor = receive, monitor
        self.loop = asyncio.get_running_loop()
        self.watcher: asyncio.Task[None] | None = None
        self.update: asyncio.Future[None] | None = None
        self.disconnected = self.closed = False

    async def __aenter__(self) -> Ticket:
        """Submit the request. Raises the Problem with which the engine refuses it."""
        self.submit(self._on_update)
        self.monitor.add(self)
        return self.ticket

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
        if self.watcher is not None:
            self.watcher.cancel()
            self.watcher = None  # its task refers to this object
        self.close()

    async def accepted(self) -> None:
        """Wait until the engine has accepted the request. Raises the Problem with which it refuses it."""
        self.engine.confirm(self.ticket)
        while not (self.ticket.accepted_at or self.ticket.outcome):
            await self.updated()
        self.check()

    async def finished(self) -> None:
        """Wait until the request has ended. Raises the Problem that it ended with, or ClientDisconnect."""
        while not self.ticket.outcome:
            await self.updated()
        self.check()

    async def updated(self) -> None:
        """Wait until more images are finished. Raises what `finished` raises."""
        if not (self.disconnected or self.ticket.outcome):
            self.update = self.loop.create_future()
            await self.update
        self.check()

    def check(self) -> None:
        """Raises the Problem that the request ended with, or ClientDisconnect."""
        self.check_connection()
        super().check()

    def check_connection(self) -> None:
        """Raises ClientDisconnect if the connection is watched and the client disconnected."""
        if self.disconnected:
            raise ClientDisconnect

    def watch_connection(self) -> None:
        """Watch for a disconnect from now on, unless the request is closed."""
        if not self.closed and self.watcher is None:
            self.watcher = self.loop.create_task(self._await_disconnect())

    def _on_update(self) -> None:
        if self.update is not None and not self.update.done():
            self.update.set_result(None)

    async def _await_disconnect(self) -> None:
        await await_disconnect(self.receive)
        self.disconnected = True
        self._on_update()


async def on_thread(http: HTTPRequest, executor: Executor, function: Callable[[threading.Event], T]) -> T:
    """The result of `function` on a thread of `executor`. Raises ClientDisconnect once the client disconnects.

    `function` gets an event that is set when nothing waits for its result any more.
    """
    cancelled, loop = threading.Event(), asyncio.get_running_loop()
    work = loop.run_in_executor(executor, function, cancelled)
    watcher = loop.create_task(await_disconnect(http.receive))
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        cancelled.set()
        work.cancel()
        watcher.cancel()


async def await_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected; for ever where a body that nothing reads is refused."""
    with suppress(Problem):
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await asyncio.Event().wait()
