"""A worker: the application on connections that the front hands it.

python -m service.server.worker CONTROL NUMBER COUNT SHARED
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, cast

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from models import memory
from service.api import direct
from service.api.direct import Fast
from service.api.generate import Headers
from service.app import Application, choose_device, create_app
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.engine.request import noop
from service.engine.runner import Runner
from service.errors import MEDIA_TYPE, BadRequest, HeadTooLarge, HeadTooSlow, Problem
from service.server.journal import Journal
from service.server.supervisor import ADMIN_CONNECTION, CLOSED, CONNECTION, DRAIN, MESSAGE, READY, RELOAD, pack
from service.settings import Settings
from service.telemetry import log

MIN_DRAIN = 1.0
"""Seconds that a worker goes on answering at least once it drains: who is about to ask is told, and not cut off."""
MAX_HEADER_BYTES = 32 * 1024
"""Bytes that the head of a request may have, its trailers too."""
TOO_LARGE = HeadTooLarge(f"send at most {MAX_HEADER_BYTES} bytes of headers")


class WorkerServer(uvicorn.Server):
    """Uvicorn without a port: connections come, one a message, through `control`."""

    def __init__(self, app: Application, control: socket.socket) -> None:
        settings = app.settings
        super().__init__(configured(app, settings))
        self.app, self.control = app, control
        self.server_configs = {CONNECTION: self.config, ADMIN_CONNECTION: configured(app.operations, settings)}
        self.gone: deque[int] = deque()
        """Numbers of connections that are gone, and the front has not been told."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.server_configs[ADMIN_CONNECTION].load()
        self.control.setblocking(False)
        self.loop.add_reader(self.control, self._listen)
        self.watch = self.loop.create_task(self.app.watch())
        self.control.send(pack(READY))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve what was handed over until now, and nothing more."""
        self.loop.remove_reader(self.control)
        self.control.shutdown(socket.SHUT_RD)  # the front hears of it when it hands over the next one, and keeps it
        self._listen()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(self.app.drain(), super().shutdown(sockets=[]))
        self.watch.cancel()

    async def _drain(self) -> None:
        """Refuse draws and end those under way, while whoever comes is told so; then go."""
        await asyncio.gather(self.app.drain(), asyncio.sleep(MIN_DRAIN))
        self.should_exit = True

    def _listen(self) -> None:
        """Do what the front says."""
        for what, number, descriptors in self._messages():
            task: asyncio.Task[Any]
            if what == DRAIN:
                task = self.loop.create_task(self._drain())
            elif what == RELOAD:
                task = self.loop.create_task(self.app.reload())
            elif len(descriptors) == 2:
                task = self.loop.create_task(self._take(self.server_configs[what], number, *descriptors))
            else:  # this process has none left
                for descriptor in descriptors:
                    os.close(descriptor)
                self.lose(number)
                continue
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _take(self, config: uvicorn.Config, number: int, descriptor: int, file: int) -> None:
        """Serve a connection, whose journal may have what was sent to a worker that is dead."""
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)

        def lost() -> None:
            with contextlib.suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)  # the front has it too, and the caller shall not wait for that
            self.lose(number)

        try:
            journal = Journal(file)
            await self.loop.connect_accepted_socket(partial(self._protocol, config, journal, lost), connection)
        except OSError:
            lost()
        finally:
            os.close(file)

    def _protocol(self, config: uvicorn.Config, journal: Journal, lost: Callable[[], None]) -> "JournaledReader":
        app = self.app if config is self.config else None
        return JournaledReader(
            HttpProtocol(config, self.server_state, self.lifespan.state, journal, lost, self.app.settings, app)
        )

    def _messages(self) -> Iterator[tuple[bytes, int, list[int]]]:
        """What waits, with descriptors; without a front, there is nothing more to serve."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE.size, 2)
                if not message:
                    self.loop.remove_reader(self.control)
                    self.should_exit = True
                    return
                yield *MESSAGE.unpack(message), descriptors

    def lose(self, number: int) -> None:
        """A connection is gone."""
        self.gone.append(number)
        self._tell()

    def _tell(self) -> None:
        """Tell the front of all that are gone, at once or when it listens again."""
        try:
            while self.gone:
                self.control.send(pack(CLOSED, self.gone[0]))
                self.gone.popleft()
        except BlockingIOError:
            self.loop.add_writer(self.control, self._tell)
            return
        except OSError:  # there is no front any more
            self.gone.clear()
        self.loop.remove_writer(self.control)


def configured(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves `app`: it says nothing of requests, since that is done already."""
    return uvicorn.Config(
        app,
        interface="asgi3",
        log_config=None,
        log_level="warning" if settings.log_level == "info" else settings.log_level,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 1,
    )


class HttpProtocol(HttpToolsProtocol):
    """One that says when it is lost, and that nobody can hold by sending or reading slowly, or sending too much.

    What was sent and not answered is in `journal`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        journal: Journal,
        lost: Callable[[], None],
        settings: Settings,
        app: Application | None,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.journal, self.lost, self.settings = journal, lost, settings
        self.application = app
        """Where there is a fast path."""
        self.fast: Fast | None = None
        """The request that is on it."""
        self.ending = False
        """Whether a request has its answer and is not told of yet: whoever begins meanwhile must wait for that."""
        self.head = 0
        """Bytes of a request's line, headers and trailers."""
        self.begun = 0
        """Bytes that came since its head began, and just before: what of them is not a header yet is at most this."""
        self.coming: Literal["", "head", "body"] = ""
        """The part of a request that is not whole."""
        self.patience: asyncio.TimerHandle | None = None
        """How long a head, or a reader, is waited for."""
        self.slow = False
        """Whether a head is."""
        self.rest: asyncio.TimerHandle | None = None
        """How long a body is waited for, whether anybody reads it or not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.outlet = BufferedTransport(transport, self.journal.before, self.loop)
        super().connection_made(self.outlet)  # type: ignore[arg-type]
        self._wait(self.settings.header_timeout, transport.close)
        if self.journal.length:
            self.data_received(self.journal.sent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._rest_no_more()
        super().connection_lost(exc)
        self.lost()
        self.journal.close()
        if self.fast is not None:
            self.fast.gone()
            self.fast = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Begin with a request, once those before it are answered; uvicorn's private hook for it."""
        if self.application is not None and not self.ending and not self.flow.write_paused:
            scope = cast(Scope, cycle.scope)
            asked = direct.recalled(self.application, scope)
            if asked is not None:
                answer, fail = partial(self._answer, cycle), partial(self._fail, cycle)
                self.fast = Fast(self.application, scope, asked, answer, fail)
                self.fast.begin()
                return
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def _answer(self, cycle: RequestResponseCycle, headers: Headers, body: bytes, last: bool) -> None:
        """What `cycle.send` does of an answer whose headers are known to be well formed, and whose body is whole."""
        self.fast = None
        cycle.keep_alive = cycle.keep_alive and not last
        content = [STATUS_LINE[200]]
        for name, value in (*self.server_state.default_headers, *headers):
            content += name, b": ", value, b"\r\n"
        content += b"" if cycle.keep_alive else b"connection: close\r\n", b"\r\n", body
        self.outlet.hold(b"".join(content))
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = noop  # as it does at its end: it and this would hold one another
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _fail(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        """Leave the fast path: `app` answers."""
        self.fast = None
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        if self.parser is None:  # the connection is lost, and uvicorn tells only the last of its requests
            return
        if self.pipeline or self.coming or self.cycle.more_body:
            self.journal.invalidate()  # what is held is answered in part
        else:
            self.journal.answered(self.outlet.written)
        self.outlet.flush()
        self.ending = True
        super().on_response_complete()
        self.ending = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.coming == "head":
            if not self.slow:
                self.slow = True
                slow = HeadTooSlow("send the whole head at once")
                self._wait(self.settings.header_timeout, partial(self._refuse, slow))
            self.begun += len(data)
            if self.begun > MAX_HEADER_BYTES:
                self._refuse(TOO_LARGE)
        elif self.coming == "body" and self.rest is None:
            self.rest = self.loop.call_later(self.settings.body_timeout + MIN_DRAIN, self.transport.close)

    def on_message_begin(self) -> None:
        self.head, self.begun, self.coming = 0, 0, "head"
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after a body in chunks a trailer."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count(self, more: int) -> None:
        """Raises HeadTooLarge, which the caller is told by then, and which ends the parser."""
        self.head += more
        if self.head > MAX_HEADER_BYTES:
            self._refuse(TOO_LARGE)
            raise TOO_LARGE

    def on_headers_complete(self) -> None:
        self.coming, self.slow = "body", False
        self._wait_no_more()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.coming = ""
        self._rest_no_more()
        super().on_message_complete()

    def _rest_no_more(self) -> None:
        if self.rest is not None:
            self.rest.cancel()
            self.rest = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(self.settings.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait_no_more()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("what was sent does not read as HTTP/1.1"))

    def _refuse(self, problem: Problem) -> None:
        """Answer what never became a request, and close."""
        if self.transport.is_closing():
            return
        body = json.dumps(problem.body()).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._wait_no_more()
        self.patience = self.loop.call_later(seconds, then)

    def _wait_no_more(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None


class JournaledReader(asyncio.BufferedProtocol):
    """What a connection comes in by: the kernel puts it into the journal, and it is never in this process alone."""

    def __init__(self, connection: HttpProtocol) -> None:
        self.connection, self.journal = connection, connection.journal

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.journal.get_buffer()

    def buffer_updated(self, count: int) -> None:
        self.connection.data_received(self.journal.commit(count))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection.connection_made(cast(asyncio.Transport, transport))

    def connection_lost(self, error: Exception | None) -> None:
        self.connection.connection_lost(error)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()


class BufferedTransport:
    """A transport that counts, and keeps what is written until the loop's turn, or the answer, ends.

    So the kernel gets a head with its body, and the end of an answer when the journal says that it is one: there is no
    moment between.
    """

    def __init__(self, transport: asyncio.Transport, written: int, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.written, self.loop = transport, written, loop
        self.kept: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self.kept:
            self.loop.call_soon(self.flush)
        self.hold(data)

    def hold(self, data: bytes) -> None:
        """Write, where the caller flushes."""
        self.written += len(data)
        self.kept.append(data)

    def flush(self) -> None:
        """Give the kernel what is kept."""
        if self.kept and not self.transport.is_closing():
            self.transport.write(b"".join(self.kept))
        self.kept.clear()

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def main(control: str, number: str, count: str, shared: str, *, runner: type[Runner] = Runner) -> None:
    """Serve what comes from the descriptor `control`, as worker `number` of `count`, until a signal.

    `shared` is a directory that all of them have in common; `runner` is what takes batches to the device.
    """
    memory.retain_freed_memory()
    settings = Settings()
    settings = settings.model_copy(
        update={"queue_images": max(settings.max_images, -(-settings.queue_images // int(count)))}
    )
    log.configure(settings)
    gate = None
    if settings.keys is not None:
        gate = Authenticator(keys.read(settings.keys), Path(shared), int(number), int(count))
    app = create_app(settings, choose_device(settings.device, int(number)), gate, runner=runner)
    WorkerServer(app, socket.socket(fileno=int(control))).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
