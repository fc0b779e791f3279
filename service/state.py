"""What the routes work with: made once an app, handed to them by it."""

import asyncio
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from service.catalog import Catalog
from service.engine.engine import Engine
from service.engine.request import EngineError, Hopeless, Late, QueueFull, Request, Stopping, Ticket
from service.errors import DrawFailed, Problem, QueueIsFull, TooLate, Unavailable
from service.settings import Settings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class State:
    """The service's parts."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    scope: str
    """What a seed's bytes depend on besides weights and parameters: kind of device, versions, threads."""

    def new_seed(self) -> int:
        """A seed for a request that names none; whole in JavaScript's numbers too."""
        return secrets.randbelow(2**53)

    async def draw(self, request: Request, connection: HTTPConnection, receive: Receive) -> Ticket:
        """The ticket of `request`, drawn. Raises the Problem that it ended with, or ClientGone.

        It belongs to the address at the connection's other end. When `receive` reports a hang-up, the rows leave before
        the next step.
        """
        owner = connection.client.host if connection.client else ""
        try:
            ticket = self.engine.submit(dataclasses.replace(request, owner=owner))
        except (QueueFull, Hopeless, Stopping) as error:
            raise _problem(error) from None
        drawn = asyncio.wrap_future(ticket.future)
        gone = asyncio.ensure_future(_hang_up(receive))
        try:
            await asyncio.wait((drawn, gone), return_when=asyncio.FIRST_COMPLETED)
            if not drawn.done():
                raise ClientGone
            drawn.result()
        except EngineError as error:
            raise _problem(error) from None
        finally:
            gone.cancel()
            if not drawn.done():
                ticket.cancel()
        return ticket


async def _hang_up(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _problem(error: EngineError) -> Problem:
    if isinstance(error, QueueFull):
        retry = {"Retry-After": str(error.retry_after)}
        return QueueIsFull(f"{error}, or ask for fewer images", headers=retry, retry_after=error.retry_after)
    if isinstance(error, Hopeless):
        return TooLate(f"{error}; give it more with `timeout`, or ask for fewer images or steps", seconds=error.seconds)
    if isinstance(error, Late):
        return TooLate(f"{error}; try again later, or give it more with `timeout`")
    if isinstance(error, Stopping):
        return Unavailable(str(error), headers={"Retry-After": "5"})
    return DrawFailed(str(error))
