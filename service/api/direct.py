"""Requests answered straight from the HTTP parser, without ASGI's tasks and messages.

Those cost more than everything else in a request for one small image or for a file of the playground. A DirectCall runs
the same functions as the ASGI routes: parsing, planning, headers, encoding. Only the waiting differs: the engine calls
back.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.parsing import ParsedRequest, is_form, parse_generate
from service.api.playground_files import PAGES, PlaygroundFiles
from service.api.responses import (
    MAX_INLINE_IMAGES,
    Headers,
    RawResponse,
    content_headers,
    encode_ticket,
    in_small_images,
    is_not_modified,
    is_streamed,
    reproduce_headers,
    respond,
)
from service.errors import Problem
from service.generation.pending import PendingGeneration
from service.telemetry import request_context
from service.telemetry.request_context import RequestContext

ROUTES = {("GET", "/generate"), ("POST", "/generate")}


class DirectTransport(Protocol):
    """The connection of a request, as the HTTP server offers it to a DirectCall."""

    def respond(self, status: int, headers: Headers, body: bytes, *, close: bool) -> None:
        """Send a whole response, and close the connection after it if `close`."""

    def run_asgi(self, app: ASGIApp) -> None:
        """Let an ASGI application respond instead."""


class Host(Protocol):
    """What a DirectCall needs of the application (`service/app.py`)."""

    draining: bool
    pages: PlaygroundFiles

    @property
    def state(self) -> Any:
        """Its state, with the AppContext as `service`."""

    def authorize(self, scope: Scope, context: RequestContext) -> None:
        """Raises the Problem for which a request is refused."""

    def problem_response(self, scope: Scope, context: RequestContext, error: Exception) -> Response:
        """The response to an exception."""

    def finish(self, context: RequestContext) -> None:
        """Record a finished request."""

    async def resume(
        self,
        context: RequestContext,
        endpoint: Callable[[Request], Awaitable[Response]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Let an endpoint answer, over ASGI, a request that is authorized already."""


def is_direct(app: Host, scope: Scope) -> bool:
    """Whether a DirectCall can answer a request with these headers."""
    path = scope["path"].removeprefix(scope["root_path"])
    if (scope["method"], path) in ROUTES:
        return not is_form(scope)
    has_body = any(name == b"content-length" for name, _ in scope["headers"])
    return scope["method"] == "GET" and path in app.pages and not has_body


class DirectCall:
    """One complete request to /generate, or for a file of the playground."""

    def __init__(self, app: Host, scope: Scope, body: bytes, transport: DirectTransport) -> None:
        self.app, self.scope, self.body, self.transport = app, scope, body, transport
        self.pending: PendingGeneration | None = None

    def start(self) -> None:
        """Authorize, parse and submit the request, or respond at once."""
        self.context = context = request_context.begin(self.scope)
        file = self.app.pages.find(context.path)
        if file is None or context.path in PAGES:
            context.route = context.path
        try:
            self.app.authorize(self.scope, context)
            if file is not None:
                self._respond(file.respond(self.scope))
            else:
                self._submit(parse_generate(self.app.state.service, self.scope, self.body))
        except Exception as error:
            self._fail(error)

    def reject(self, problem: Problem) -> None:
        """Respond with a problem instead, and close the connection."""
        self.context = request_context.begin(self.scope)
        self.context.route = self.context.path
        self._respond(self.app.problem_response(self.scope, self.context, problem), close=True)

    def disconnect(self) -> None:
        """The client disconnected: cancel the request."""
        if self.pending is not None:
            self.pending.close()
        self.context.client_disconnected()
        self.app.finish(self.context)

    def _submit(self, parsed: ParsedRequest) -> None:
        (plan, format_, deterministic), context, service = parsed, self.context, self.app.state.service
        cost = in_small_images(len(plan.request.samples), plan.model.image_shape)
        if plan.model.runner is None or is_streamed(plan, format_) or cost > MAX_INLINE_IMAGES:
            self.transport.run_asgi(partial(self.app.resume, context, partial(_respond, parsed)))
            return
        headers = reproduce_headers(plan, format_, context, service.scope, deterministic=deterministic)
        if is_not_modified(self.scope, headers):
            self._respond(RawResponse(b"", headers, 304))
            return
        service.loader.touch(plan.model)
        context.model, context.digest, context.seed = plan.model.name, plan.model.digest, plan.seed
        pending = PendingGeneration(service.engine, plan.request, context)
        pending.submit(partial(self._on_update, parsed, headers))
        self.pending = pending

    def _on_update(self, parsed: ParsedRequest, headers: Headers) -> None:
        pending, context = self.pending, self.context
        assert pending is not None
        if not pending.ticket.outcome:
            return
        pending.close()
        try:
            pending.check()
            with context.time_encoding():
                content = encode_ticket(parsed.plan, parsed.format, pending.ticket, context)
            response = RawResponse(content, headers + content_headers(content, parsed.format, pending.ticket))
        except Exception as error:
            self._fail(error)
        else:
            self._respond(response)

    def _fail(self, error: Exception) -> None:
        self._respond(self.app.problem_response(self.scope, self.context, error))

    def _respond(self, response: Response, *, close: bool = False) -> None:
        context = self.context
        context.status = response.status_code
        headers = [*response.raw_headers, *context.headers()]
        self.app.finish(context)
        self.transport.respond(response.status_code, headers, bytes(response.body), close=close or self.app.draining)


async def _respond(parsed: ParsedRequest, request: Request) -> Response:
    return await respond(request, parsed.plan, parsed.format, deterministic=parsed.deterministic)
