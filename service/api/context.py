"""What the routes work with: made once an app, handed to them by it."""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from service.engine.catalog import Catalog, Model
from service.engine.engine import Engine
from service.engine.request import (
    DeadlineExceeded,
    DeadlineUnattainable,
    EngineError,
    ModelUnloaded,
    QueueFull,
    Request,
    ShuttingDown,
    Ticket,
    noop,
)
from service.errors import DrawFailed, Problem, QueueIsFull, TooLate, Unavailable
from service.settings import Settings
from service.telemetry import request_context
from service.telemetry.request_context import RequestContext

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


PATIENCE = 0.05
"""Seconds after which it is watched whether the caller is still there: for less, that would cost more than it saves."""


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class AppContext:
    """The service's parts."""

    settings: Settings
    catalog: Catalog
    """Replaced by another where weights are."""
    engine: Engine
    scope: str
    """What a seed's bytes depend on besides weights and parameters: kind of device, versions, threads."""
    parse_cache: dict[Hashable, Any] = field(default_factory=dict)
    """What queries come to on the weights of `catalog`, for whoever has found that out once (`service/queries.py`)."""

    def __post_init__(self) -> None:
        self.watch = DisconnectMonitor()

    def serve(self, catalog: Catalog) -> None:
        """Draw from these from now on."""
        self.catalog, self.parse_cache = catalog, {}

    def new_seed(self) -> int:
        """A seed for a request that names none; whole in JavaScript's numbers too."""
        return secrets.randbelow(2**53)

    async def draw(self, request: Request, model: Model, asked: HTTPRequest, seed: int | None = None) -> Ticket:
        """The ticket of `request`, drawn. Raises the Problem that it ended with, or ClientGone."""
        drawing = self.drawing(request, model, asked, seed)
        async with drawing as ticket:
            await drawing.all()
        return ticket

    def drawing(
        self, request: Request, model: Model, asked: HTTPRequest, seed: int | None = None
    ) -> "AwaitedGeneration":
        """`request` at the engine, for the time that its caller waits."""
        call = request_context.of(asked)
        call.model, call.digest, call.seed = model.name, model.digest, seed
        return AwaitedGeneration(self, request, call, asked.receive)


class PendingGeneration:
    """A request at the engine, from its submission to its end or its caller's."""

    def __init__(self, engine: Engine, request: Request, call: RequestContext) -> None:
        self.engine, self.request, self.call = engine, request, call

    def begin(self, told: Callable[[], None]) -> None:
        """Submit it: `told` is the ticket's. Raises the Problem for which the engine refuses it."""
        call, count = self.call, len(self.request.samples)
        if call.lease is not None:
            call.lease.consume("images", count)
        try:
            self.ticket = call.ticket = self.engine.submit(self.request, told, call.owner)
        except (QueueFull, DeadlineUnattainable, ModelUnloaded, ShuttingDown) as error:
            if call.lease is not None:
                call.lease.refund("images", count)
            raise _problem(error) from None

    def check(self) -> None:
        """Raises the Problem that it ended with."""
        if self.ticket.error is not None:
            raise _problem(self.ticket.error)

    def end(self) -> None:
        """Nobody waits any more: rows that are left leave before the next step."""
        if not self.ticket.outcome:
            self.engine.cancel(self.ticket)
        # Which held this, and with it the whole request: a cycle each would keep the garbage collector busy.
        self.ticket.on_update = noop


class DisconnectMonitor:
    """Has those drawings that are not over after PATIENCE listen whether their callers are still there.

    One timer for all of them: most are over by then, and would have set one for nothing.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, AwaitedGeneration]] = deque()

    def add(self, drawing: "AwaitedGeneration") -> None:
        """Look at it in a while."""
        if not self.waiting:
            drawing.loop.call_later(PATIENCE, self._look, drawing.loop)
        self.waiting.append((drawing.loop.time() + PATIENCE, drawing))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self.waiting and self.waiting[0][0] <= now:
            self.waiting.popleft()[1].listen()
        if self.waiting:
            loop.call_later(self.waiting[0][0] - now, self._look, loop)


class AwaitedGeneration(PendingGeneration):
    """A drawing as a context, whose value is the ticket. It ends with the block, and where its caller hangs up."""

    def __init__(self, state: AppContext, request: Request, call: RequestContext, receive: Receive) -> None:
        super().__init__(state.engine, request, call)
        self.watch, self.receive = state.watch, receive
        self.loop = asyncio.get_running_loop()
        self.listening: asyncio.Task[None] | None = None
        self.news: asyncio.Future[None] | None = None
        self.gone = self.over = False

    async def __aenter__(self) -> Ticket:
        """Raises the Problem for which the engine refuses it."""
        self.begin(self._told)
        self.watch.add(self)
        return self.ticket

    async def __aexit__(self, *_: object) -> None:
        self.over = True
        if self.listening is not None:
            self.listening.cancel()
        self.end()

    async def all(self) -> None:
        """Wait until it has ended. Raises the Problem that it ended with, or ClientGone."""
        while not self.ticket.outcome:
            await self.more()
        self.check()

    async def more(self) -> None:
        """Wait until more of it is drawn. Raises the Problem that it ended with, or ClientGone."""
        if not (self.gone or self.ticket.outcome):
            self.news = self.loop.create_future()
            await self.news
        self.check()

    def check(self) -> None:
        """Raises the Problem that it ended with, or ClientGone."""
        if self.gone:
            raise ClientDisconnected
        super().check()

    def _told(self) -> None:
        if self.news is not None and not self.news.done():
            self.news.set_result(None)

    def listen(self) -> None:
        """Watch whether the caller is still there, unless it is over."""
        if not self.over:
            self.listening = self.loop.create_task(self._hang_up())

    async def _hang_up(self) -> None:
        with suppress(Problem):  # of a body that nobody wants
            while (await self.receive())["type"] != "http.disconnect":
                pass
            self.gone = True
            self._told()


def _problem(error: EngineError) -> Problem:
    if isinstance(error, QueueFull):
        retry = {"Retry-After": str(error.retry_after)}
        return QueueIsFull(f"{error}, or ask for fewer images", headers=retry, retry_after=error.retry_after)
    if isinstance(error, DeadlineUnattainable):
        return TooLate(f"{error}; give it more with `timeout`, or ask for fewer images or steps", seconds=error.seconds)
    if isinstance(error, DeadlineExceeded):
        return TooLate(f"{error}; try again later, or give it more with `timeout`")
    if isinstance(error, ModelUnloaded):
        return Unavailable(str(error), headers={"Retry-After": "1"})
    if isinstance(error, ShuttingDown):
        return Unavailable(str(error), headers={"Retry-After": "5"})
    return DrawFailed(str(error))
