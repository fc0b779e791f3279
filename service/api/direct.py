"""The fast path: a draw that differs from one before in its seed alone, without ASGI.

A task, a request, a response in two messages and what checks each of them cost more than all that is a draw's own.
Most of what a loaded service is asked is of this kind. All else goes ASGI's way, and so do requests from here that
come to an error; both ways give the same answers (`tests/service/test_fast.py` holds one against the other).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Scope

from service.api import generate, parsing
from service.api.context import PendingGeneration
from service.api.generate import Headers
from service.api.parsing import ParsedRequest
from service.telemetry import request_context

if TYPE_CHECKING:
    from service.app import Application

SLOW = frozenset((b"expect", b"if-none-match", b"transfer-encoding", b"x-forwarded-for"))
"""Headers that take more than is done here: what comes through a proxy that sets the last of them goes ASGI's way."""


class Fast:
    """A request on the fast path.

    It ends with `answer`, of headers, a body, and whether it was the connection's last; with `fail`, of who answers
    in its place; or is `gone`.
    """

    def __init__(
        self,
        app: "Application",
        scope: Scope,
        asked: ParsedRequest,
        answer: Callable[[Headers, bytes, bool], None],
        fail: Callable[[ASGIApp], None],
    ) -> None:
        self.app, self.scope, self.asked, self.answer, self.fail = app, scope, asked, answer, fail

    def begin(self) -> None:
        """Submit it."""
        drawn, model = self.asked.draw, self.asked.draw.model
        self.call = call = request_context.begin(self.scope)
        call.route = call.path
        self.drawing = PendingGeneration(self.app.state.service.engine, drawn.request, call)
        try:
            self.app.authorize(self.scope, call)
            call.model, call.digest, call.seed = model.name, model.digest, drawn.seed
            self.drawing.begin(self._told)
        except Exception as error:
            self._fail(error)

    def gone(self) -> None:
        """Its caller hung up."""
        self.drawing.end()
        self.call.client_disconnected()
        self.app.finish(self.call)

    def _told(self) -> None:
        ticket, call, (drawn, format_, fixed) = self.drawing.ticket, self.call, self.asked
        if not ticket.outcome:
            return
        self.drawing.end()
        try:
            self.drawing.check()
            with call.time_encoding():
                content = generate.file(drawn, format_, ticket, call)
            headers = generate.described(drawn, format_, call, self.app.state.service.scope, fixed=fixed)
            headers += generate.filled(content, format_, ticket)
            headers += call.headers()
        except Exception as error:
            self._fail(error)
        else:
            call.status = 200
            self.app.finish(call)
            self.answer(headers, content, self.app.draining)

    def _fail(self, error: Exception) -> None:
        self.fail(partial(self.app.refuse, self.call, error))


def recalled(app: "Application", scope: Scope) -> ParsedRequest | None:
    """What a request asks for, where the fast path is its way."""
    if scope["path"] != "/generate" or scope["method"] not in ("GET", "POST"):
        return None
    for name, value in scope["headers"]:
        if name in SLOW or (name == b"content-length" and value != b"0"):
            return None
    found = parsing.known(app.state.service, scope)
    return found if found is not None and generate.at_once(found.draw, found.format) else None
