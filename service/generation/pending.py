"""A request in the engine, from its submission to its end."""

from collections.abc import Callable

from service.engine.interface import RequestEngine
from service.engine.request import (
    DeadlineExceeded,
    DeadlineUnattainable,
    EngineError,
    ModelUnloaded,
    PoisonRequest,
    QueueFull,
    Request,
    ShuttingDown,
    noop,
)
from service.errors import GenerationFailed, Problem, QueueIsFull, TimedOut, Unavailable
from service.telemetry.request_context import RequestContext


class PendingGeneration:
    """A request in the engine, on behalf of an HTTP request."""

    def __init__(self, engine: RequestEngine, request: Request, context: RequestContext) -> None:
        self.engine, self.request, self.context = engine, request, context

    def submit(self, on_update: Callable[[], None]) -> None:
        """Submit the request. The engine calls `on_update` after each step that finishes images or ends the request.

        Images count towards the key's quota. Raises the Problem with which the quota or the engine refuses the request.
        """
        context = self.context
        if context.lease is not None:
            context.lease.consume("images", len(self.request.samples))
        try:
            self.ticket = context.ticket = self.engine.submit(self.request, on_update, context.owner)
        except (QueueFull, DeadlineUnattainable, ModelUnloaded, ShuttingDown) as error:
            raise to_problem(error) from None

    def check(self) -> None:
        """Raises the Problem that the request ended with."""
        if self.ticket.error is not None:
            raise to_problem(self.ticket.error)

    def close(self) -> None:
        """Cancel the request if it has not ended: its rows leave the batch before the next step."""
        if not self.ticket.outcome:
            self.engine.cancel(self.ticket)
        # The ticket referred to this object: one reference cycle per request would burden the garbage collector.
        self.ticket.on_update = noop


def to_problem(error: EngineError) -> Problem:
    """The problem that tells a client about an engine error."""
    if isinstance(error, QueueFull):
        retry = {"Retry-After": str(error.retry_after)}
        return QueueIsFull(f"{error}, or request fewer images", headers=retry, retry_after=error.retry_after)
    if isinstance(error, DeadlineUnattainable):
        return TimedOut(f"{error}; raise `timeout`, or request fewer images or steps", seconds=error.seconds)
    if isinstance(error, DeadlineExceeded):
        return TimedOut(f"{error}; retry later, or raise `timeout`")
    if isinstance(error, ModelUnloaded):
        return Unavailable(str(error), headers={"Retry-After": "1"})
    if isinstance(error, ShuttingDown | PoisonRequest):
        return Unavailable(str(error), headers={"Retry-After": "5"})
    return GenerationFailed(str(error))
