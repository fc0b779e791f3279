"""The application: parts put together, one error handler, limits on what comes in."""

import asyncio
import faulthandler
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send
from swagger_ui_bundle import swagger_ui_path

from models.base import Family
from service import VERSION, errors
from service.api import encode, generate, info, openapi_schema
from service.api.context import AppContext, ClientDisconnected
from service.api.pages import add_pages
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.compat import open_inference, openai
from service.engine.catalog import Catalog, load
from service.engine.engine import Engine
from service.engine.loops import EngineLoop, EventLoopEngine, ThreadEngine
from service.engine.runner import Runner
from service.errors import Problem
from service.settings import Settings
from service.telemetry import request_context
from service.telemetry.log import RequestLog
from service.telemetry.metrics import Metrics
from service.telemetry.request_context import PROBE_PATHS, RequestContext
from service.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

COMPAT_APIS = (openai, open_inference)
"""Routes that speak others' languages, of errors too."""
ROUTES = (generate, encode, info, *COMPAT_APIS)

MAX_BATCH_SIZE = {"cpu": 16, "cuda": 128}
"""Rows of a step unless set otherwise. On a CPU a row costs less the more there are (`python -m benchmarks engine`),
but who comes waits for the step that runs; a GPU's number is a guess that nobody has measured yet."""
MAX_BATCH_SIZE_SINGLE_STEP = {"cpu": 32, "cuda": 128}
"""Likewise, of models that draw in one step, whose steps are short."""

TELEMETRY_FLUSH_SECONDS = 0.02
"""Seconds after which requests are told of."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    settings: Settings,
    device: torch.device | None = None,
    authenticator: Authenticator | None = None,
    only: str | None = None,
    runner: type[Runner] = Runner,
) -> "Application":
    """The service on the weights that `settings` name, or on `only` one of them; `device` goes before the settings'.

    Without a `gate`, whoever gets as far as here may draw; `runner` takes batches to the device.

    Raises ValueError for settings that this machine cannot keep.
    """
    app = Application(settings, device or choose_device(settings.device), authenticator, only, runner)
    for routes in ROUTES:
        app.include_router(routes.router)
    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    app.add_api_route("/docs", docs, include_in_schema=False)
    add_pages(app, settings.lab)
    for kind in (Problem, HTTPException, ClientDisconnected, Exception):
        app.add_exception_handler(kind, on_error)
    return app


def choose_device(name: str, worker: int = 0) -> torch.device:
    """The device of a worker, by its number: a GPU where there is one and `name` is not `cpu`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("DRAWBRIDGE_DEVICE is cuda, and torch sees no GPU; set it to cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", worker % torch.cuda.device_count())


async def docs() -> HTMLResponse:
    """The API's pages, from the assets that are installed with the service: nothing is fetched from elsewhere."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Drawbridge",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )


async def on_error(request: Request, error: Exception) -> Response:
    """Every error as problem+json (RFC 9457). What was not foreseen is logged and told to nobody."""
    call = request_context.of(request)
    if isinstance(error, ClientDisconnected):
        call.client_disconnected()
        return Response(status_code=call.status)
    if not isinstance(error, Problem):
        error = _as_problem(request, error)
    call.problem = error.kind
    for other in COMPAT_APIS:
        if call.path.startswith(other.router.prefix + "/"):
            status, told = other.error(error)
            return JSONResponse(told, status, headers=error.headers)
    body = {**error.body(), "instance": request.url.path}
    return JSONResponse(body, error.status, headers=error.headers, media_type=errors.MEDIA_TYPE)


async def tell_of(error: Exception, request: Request, send: Send) -> None:
    """Answer a request that came to `error`."""
    response = await on_error(request, error)
    await response(request.scope, request.receive, send)


def _as_problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException) and error.status_code == 404:
        return errors.NotFound(f"nothing is at {request.url.path}; see {request_context.of(request).root}/docs")
    if isinstance(error, HTTPException) and error.status_code == 405:
        routes = [route for part in ROUTES for route in part.router.routes if isinstance(route, APIRoute)]
        matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        here = {method for route in matching for method in route.methods or ()}
        allowed = ", ".join(sorted(here)) or (error.headers or {}).get("Allow", "GET")
        return errors.MethodNotAllowed(
            f"{request.url.path} takes {allowed}, not {request.method}", headers={"Allow": allowed}
        )
    if isinstance(error, HTTPException):  # Starlette's own: a form that does not read as one
        return errors.InvalidParameter(str(error.detail))
    log.error("unforeseen error in request %s", request_context.of(request).id, exc_info=error)
    return Problem("Something broke that should not; the log of the service says what.")


class Application(FastAPI):
    """FastAPI, but for the routes that draw: these are called straight from here.

    They read their parameters themselves, and what FastAPI does on the way costs several times what they do. It
    documents them, and answers whatever fits none. No body is longer than the settings say, whoever answers; and every
    request is told of once it has its answer.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        gate: Authenticator | None,
        only: str | None,
        runner: type[Runner],
    ) -> None:
        super().__init__(
            title="Drawbridge",
            version=VERSION,
            description=__doc__,
            lifespan=Application.lifespan,
            docs_url=None,
            redoc_url=None,
        )
        self.openapi_version = "3.0.3"  # the newest that the bundled Swagger UI draws
        self.settings, self.device, self.authenticator = settings, device, gate
        self.draining = False
        self.load = partial(
            load, root=settings.weights, device=device, seats=self.max_batch_size, only=only, runner=runner
        )
        self.log = RequestLog(settings)
        self.finished: list[RequestContext] = []
        """Requests that are answered, and nobody was told of."""
        self.metrics = Metrics()
        self.reloading = asyncio.Lock()
        self.loader = ThreadPoolExecutor(1, "loader", torch.set_num_threads, (settings.threads,))
        """One thread for all that is loaded while the service runs, so that what it frees is used again."""
        self.tracer = Tracer() if settings.tracing else None
        self.direct: dict[tuple[str, str], Endpoint] = {
            (method, route.path): route.endpoint
            for route in (*generate.router.routes, *encode.router.routes)
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load what there is, draw until the end, and let go of it."""
        self.state.service = self._loaded()
        engine: Engine = self.state.service.engine
        self.engine_loop: EngineLoop = EventLoopEngine(engine) if self.device.type == "cpu" else ThreadEngine(engine)
        await self.engine_loop.start()
        gc.collect()
        gc.freeze()  # what is here stays, and need not be looked through again and again
        yield
        await self.drain()
        self.flush_telemetry()
        self.loader.shutdown()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def _loaded(self) -> AppContext:
        """All weights, warm, and an engine for them. Its names end with it, and keep nothing that is replaced."""
        if self.device.type == "cpu":
            torch.set_num_threads(self.settings.threads)
        catalog = self.load(Catalog())
        engine = Engine(
            {model.key: model.runner for model in catalog.models.values()},
            queue_images=self.settings.queue_images,
            clock=time.perf_counter,
            observer=self.metrics,
        )
        kernels = f"{torch.backends.cpu.get_cpu_capability()} threads {self.settings.threads}"
        scope = f"{VERSION} {self.device.type} torch {torch.__version__} numpy {np.__version__} {kernels}"
        return AppContext(self.settings, catalog, engine, scope)

    def max_batch_size(self, family: Family) -> int:
        """Rows that a step of `family` has at most."""
        usual = MAX_BATCH_SIZE_SINGLE_STEP if family.steps.maximum == 1 else MAX_BATCH_SIZE
        return self.settings.max_batch_size or usual[self.device.type]

    async def reload(self) -> None:
        """Take up the weights that lie there now, beside what runs. What is broken changes nothing.

        New ones warm up on a thread, and take requests from one moment to the next; those that they replace end what
        they have, and can still be asked for by their version until they are replaced again.
        """
        async with self.reloading:
            state, loop = self.state.service, asyncio.get_running_loop()
            old = state.catalog
            new = await loop.run_in_executor(self.loader, self.load, old)
            for key in new.versions.keys() - old.versions.keys():
                state.engine.add(key, new.versions[key].runner)
            state.serve(new)
            for key in old.versions.keys() - new.versions.keys():
                state.engine.retire(key)
            before = {model.key for model in old.models.values()}
            fresh = sorted(model.key for model in new.models.values() if model.key not in before)
            if self.authenticator is not None and self.settings.keys is not None:
                self._renew_keys(self.authenticator, self.settings.keys)
            self.metrics.reloads["broken" if new.broken else "done"].inc()
            log.info("weights: new %s; broken %s", ", ".join(fresh) or "none", ", ".join(new.broken) or "none")

    def _renew_keys(self, gate: Authenticator, path: Path) -> None:
        try:
            gate.keys = keys.read(path)
        except ValueError as error:
            log.error("the keys stay as they were: %s", error)

    async def watch(self) -> None:
        """See to it that a worker which is held up is replaced, and to what is measured now and then."""
        stall = self.settings.watchdog_timeout
        engine: Engine = self.state.service.engine
        try:
            while True:
                # Its thread is one of C, which no lock of Python's holds up.
                faulthandler.dump_traceback_later(stall, exit=True)
                if engine.step_started_at is not None and time.perf_counter() - engine.step_started_at > stall:
                    log.critical("a step on the device has taken %g s and goes on; this worker ends", stall)
                    os._exit(1)
                self.metrics.sample_memory(self.device)
                await asyncio.sleep(min(stall / 4, 5))
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def operations(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application at its other door."""
        scope["door"] = "operations"
        await self(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The API's description; where keys are needed it says so."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = openapi_schema.completed(super().openapi(), {part.router.prefix: part.error for part in COMPAT_APIS})
        if self.authenticator is not None:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        return schema

    async def drain(self) -> None:
        """Refuse draws from now on, and end those that are under way: with what is drawn, or why it is not."""
        self.draining = True
        await self.engine_loop.stop(self.settings.drain_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self._serve(request_context.begin(scope), self._answer, scope, receive, send)

    async def refuse(self, call: RequestContext, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the fast path began, and that came to an error there."""
        await self._serve(call, partial(tell_of, error), scope, receive, send)

    async def _serve(
        self,
        call: RequestContext,
        answer: Callable[[Request, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer, with what every answer says, and tell of it."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message["headers"], *call.headers()]
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await answer(Request(scope, limited(receive, self.settings), told), told)
        finally:
            self.finish(call)

    async def _answer(self, request: Request, send: Send) -> None:
        scope, call = request.scope, request_context.of(request)
        endpoint = self.direct.get((call.method, call.path))
        if endpoint is not None:
            call.route = call.path
        try:
            self.authorize(scope, call)
            if endpoint is not None:
                response = await endpoint(request)
                await response(scope, request.receive, send)
                return
        except Exception as error:
            await tell_of(error, request, send)
            return
        await super().__call__(scope, request.receive, send)  # FastAPI answers its own errors
        call.route = getattr(scope.get("route"), "path", call.route)

    def authorize(self, scope: Scope, call: RequestContext) -> None:
        """Let a request in. Raises the Problem for which it may not: the wrong port, no key, too long a body."""
        if self.settings.admin_port is not None and ("door" in scope) != (call.path in PROBE_PATHS):
            raise errors.NotFound(f"{call.path} is not at this port")
        if self.authenticator is not None and (guest := self.authenticator.authenticate(scope, call.path)) is not None:
            call.lease = guest
            guest.acquire()
        check_length(scope, self.settings.max_body_bytes)

    def finish(self, call: RequestContext) -> None:
        """A request is answered. Whoever wants to know is told soon: many at once take less time than one by one."""
        if call.lease is not None:
            call.lease.release()
        call.finished_at = time.perf_counter()
        self.finished.append(call)
        if len(self.finished) == 1:
            asyncio.get_running_loop().call_later(TELEMETRY_FLUSH_SECONDS, self.flush_telemetry)

    def flush_telemetry(self) -> None:
        """Tell of all requests that are answered."""
        told, self.finished = self.finished, []
        self.metrics.record_requests(told)
        if self.tracer is not None:
            for call in told:
                self.tracer.record_request(call)
        self.log.write(told)


def check_length(scope: Scope, limit: int) -> None:
    """Raises BodyTooLarge where a request says that its body is longer than `limit` bytes."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise errors.BodyTooLarge(f"{int(value)} bytes; send at most {limit}")


def limited(receive: Receive, settings: Settings) -> Receive:
    """`receive`, which raises BodyTooLarge or BodyTooSlow once a body has, or takes, more than `settings` allow."""
    seen, whole, begun = 0, False, time.monotonic()

    async def counted() -> Message:
        nonlocal seen, whole
        # Once the body is whole, whoever asks on waits for its caller to hang up.
        left = None if whole else max(0.0, begun + settings.body_timeout - time.monotonic())
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            raise errors.BodyTooSlow(f"it did not come within {settings.body_timeout:g} s") from None
        seen += len(message.get("body", b""))
        if seen > settings.max_body_bytes:
            raise errors.BodyTooLarge(f"send at most {settings.max_body_bytes} bytes")
        whole = not message.get("more_body", False)
        return message

    return counted
