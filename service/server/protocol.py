"""HTTP/1.1 on uvicorn's parser, with limits on slow and large requests, and with direct answers."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Literal, cast

import httptools
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api.direct import DirectCall, is_direct
from service.api.responses import Headers
from service.app import Application
from service.engine.request import noop
from service.errors import BadRequest, BodyTooSlow, HeadersTooLarge, HeadersTooSlow, Problem
from service.server.transport import BufferedTransport, ConnectionRecord
from service.settings import Settings

MIN_DRAIN = 1.0
"""Seconds that a draining worker goes on responding at least, and that an application has to refuse a slow body."""
MAX_HEADER_BYTES = 32 * 1024
"""Bytes of a request's line, headers and trailers."""
MAX_DIRECT_BODY = 16 * 1024
"""Bytes of a body that is read before the request is looked at; a longer one is the ASGI application's to read."""
TOO_LARGE = HeadersTooLarge(f"send at most {MAX_HEADER_BYTES} bytes of headers")


def uvicorn_config(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration for `app`. Requests are logged by the application, not by uvicorn."""
    return uvicorn.Config(
        app,
        interface="asgi3",
        log_config=None,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,
        ws="none",
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=False,  # HttpProtocol applies them, for direct answers too
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 1,
        **options,
    )


class HttpProtocol(HttpToolsProtocol):
    """One connection. `record` keeps what was received and not answered; `on_close` is called at its end.

    A request that the application can answer directly is handed to it once it is complete; any other goes to the ASGI
    application when its headers are complete. Clients that send or read too slowly, or send too much, are disconnected.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        record: ConnectionRecord,
        on_close: Callable[[], None],
        application: Application,
        *,
        direct: bool = True,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.record, self.on_close, self.application, self.direct = record, on_close, application, direct
        self.settings = application.settings
        self.proxy_headers = _proxy_headers(cast(str, config.forwarded_allow_ips))
        self.delayed: RequestResponseCycle | None = None
        """A request that can be answered directly once its body is complete."""
        self.call: DirectCall | None = None
        self.call_cycle: RequestResponseCycle | None = None
        """The request that is being answered directly."""
        self.finishing = False
        """Whether a response was sent and its request not recorded yet; the next request's quota may depend on it."""
        self.replaying = False
        """Whether the next request was accepted by a worker that died."""
        self.parsing = False
        self.completed_while_parsing = False
        """Whether a response was completed before all received bytes were parsed: only then the journal can know
        whether they are answered."""
        self.header_bytes = 0
        self.head_bytes_received = 0
        """Bytes received since the headers began: an upper bound of those that are not parsed yet."""
        self.incomplete: Literal["", "headers", "body"] = ""
        """The part of a request that has begun and is not complete."""
        self.header_timer: asyncio.TimerHandle | None = None
        """Limits the time for headers, and for a client that does not read."""
        self.headers_delayed = False
        self.body_timer: asyncio.TimerHandle | None = None

    # -- the connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.output = BufferedTransport(transport, self.record.response_start, self.loop)
        super().connection_made(self.output)  # type: ignore[arg-type]
        self._start_header_timer(self.settings.header_timeout, transport.close)
        if self.record.length:
            self.replaying = True
            self.data_received(self.record.resume())
            self.replaying = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_body_timer()
        super().connection_lost(exc)
        self.on_close()
        self.record.close()
        self.delayed = None
        if self.call is not None:
            self.call.disconnect()
            self.call = self.call_cycle = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_header_timer(self.settings.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_header_timer()

    # -- parsing -------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.parsing = True
        self._parse(data)
        self.parsing = False
        if self.completed_while_parsing:
            self.completed_while_parsing = False
            self._commit_responses()
        if self.incomplete == "headers":
            if not self.headers_delayed:
                self.headers_delayed = True
                slow = HeadersTooSlow("send all headers at once")
                self._start_header_timer(self.settings.header_timeout, partial(self._reject, slow))
            self.head_bytes_received += len(data)
            if self.head_bytes_received > MAX_HEADER_BYTES:
                self._reject(TOO_LARGE)
        elif self.incomplete == "body" and self.body_timer is None:
            if self.delayed is not None:
                self.body_timer = self.loop.call_later(self.settings.body_timeout, self._reject_slow_body)
            else:  # the ASGI application refuses a slow body before this
                self.body_timer = self.loop.call_later(self.settings.body_timeout + MIN_DRAIN, self.transport.close)

    def _parse(self, data: bytes) -> None:
        """Parse received bytes, without the upgrades that they ask for: a server may ignore those (RFC 9110, 7.8)."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The parser takes what follows the headers for another protocol, and not for a body.
                (parsed,) = upgrade.args
                if self.parser.get_method() == b"CONNECT":
                    self._reject(BadRequest("this service is not a proxy; it does not take CONNECT"))
                    return
                data = self._head_without_upgrade() + data[parsed:]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")
                return

    def _head_without_upgrade(self) -> bytes:
        """The line and the headers of the request that was just parsed, but for Upgrade."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self.header_bytes, self.head_bytes_received, self.incomplete = 0, 0, "headers"
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after a chunked body a trailer."""
        self._count_header_bytes(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count_header_bytes(self, count: int) -> None:
        """Raises HeadersTooLarge, which ends the parser, after the response to it."""
        self.header_bytes += count
        if self.header_bytes > MAX_HEADER_BYTES:
            self._reject(TOO_LARGE)
            raise TOO_LARGE

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # parsed again without it
            return
        self.incomplete, self.headers_delayed = "body", False
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.incomplete = ""
        self._stop_body_timer()
        super().on_message_complete()
        if self.delayed is not None:
            cycle, self.delayed = self.delayed, None
            self._start_direct_call(cycle)

    # -- responding ----------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Start a request; uvicorn calls this when earlier requests of the connection are answered."""
        scope = cast(Scope, cycle.scope)
        if self.replaying:
            scope["taken_over"], self.replaying = True, False
        direct = self.direct and not (self.finishing or self.flow.write_paused)
        for name, value in scope["headers"]:
            if name.startswith(b"x-forwarded-"):
                with suppress(StopIteration):  # it only changes the scope; nothing in it waits
                    self.proxy_headers(scope, None, None).send(None)  # type: ignore[arg-type]
            elif name in (b"expect", b"transfer-encoding"):
                direct = False
            elif name == b"content-length":
                direct = direct and int(value) <= MAX_DIRECT_BODY
        if not (direct and is_direct(self.application, scope)):
            super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]
        elif cycle.more_body:
            self.delayed = cycle
        else:
            self._start_direct_call(cycle)

    def _start_direct_call(self, cycle: RequestResponseCycle) -> None:
        self.call_cycle = cycle
        self.call = call = DirectCall(self.application, cast(Scope, cycle.scope), bytes(cycle.body), self)
        call.start()

    def respond(self, status: int, headers: Headers, body: bytes, *, close: bool) -> None:
        """Send a direct response; its headers are well formed and its body is complete."""
        assert self.call_cycle is not None
        cycle = self.call_cycle
        self.call = self.call_cycle = None
        cycle.keep_alive = cycle.keep_alive and not close
        content = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            content += name, b": ", value, b"\r\n"
        content += b"" if cycle.keep_alive else b"connection: close\r\n", b"\r\n", body
        self.output.write_buffered(b"".join(content))
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = noop  # it referred to this object, which refers to the cycle
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def run_asgi(self, app: ASGIApp) -> None:
        """Let `app` respond to the request that was to be answered directly."""
        assert self.call_cycle is not None
        cycle = self.call_cycle
        self.call = self.call_cycle = None
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        if self.parser is None:  # the connection is lost
            return
        if self.parsing:
            self.completed_while_parsing = True
        else:
            self._commit_responses()
        self.finishing = True
        super().on_response_complete()
        self.finishing = False

    def _commit_responses(self) -> None:
        """Record that the received bytes are answered, in all or in part, and send what is buffered."""
        if self.pipeline or self.incomplete or self.cycle.more_body or not self.cycle.response_complete:
            self.record.invalidate()
        else:
            self.record.mark_answered(self.output.written)
        self.output.flush()

    # -- rejecting -----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._reject(BadRequest("this is not a valid HTTP/1.1 request"))

    def _reject(self, problem: Problem) -> None:
        """Respond to something that never became a request, and close."""
        if not self.transport.is_closing():
            self.transport.write(problem.raw_response())
            self.transport.close()

    def _reject_slow_body(self) -> None:
        """Respond to a request whose body did not arrive in time, and close."""
        assert self.delayed is not None
        self.call_cycle, self.delayed = self.delayed, None
        call = DirectCall(self.application, cast(Scope, self.call_cycle.scope), b"", self)
        call.reject(BodyTooSlow(f"the body did not arrive within {self.settings.body_timeout:g} s"))

    # -- timers --------------------------------------------------------------------------------------------------------

    def _start_header_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_header_timer()
        self.header_timer = self.loop.call_later(seconds, callback)

    def _stop_header_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _stop_body_timer(self) -> None:
        if self.body_timer is not None:
            self.body_timer.cancel()
            self.body_timer = None


@cache
def _proxy_headers(trusted_hosts: str) -> ProxyHeadersMiddleware:
    """The middleware for these hosts; all connections share it, and with it what it knows of addresses."""
    return ProxyHeadersMiddleware(_ignore, trusted_hosts)


async def _ignore(scope: Any, receive: Any, send: Any) -> None:
    """The application behind ProxyHeadersMiddleware, of which only the change of the scope is used."""
