"""The application: settings, models, engine, routes and telemetry put together."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from models.devices import choose_device
from models.store import WeightsError
from service import VERSION, errors
from service.api import edit, encode, films, generate, info, nearest, openapi_schema
from service.api.context import AppContext
from service.api.limits import check_content_length, limited
from service.api.pages import add_pages
from service.api.parsing import refuse_get_body
from service.api.playground_files import PlaygroundFiles
from service.auth import keys
from service.auth.authenticator import Authenticator
from service.compat import open_inference, openai
from service.engine.catalog import Catalog
from service.engine.interface import Loader
from service.engine.loops import EngineLoop
from service.engine.remote import RemoteEngine, RemoteLoop
from service.engine.runner import Runner
from service.engine.setup import create_engine, create_loop
from service.engine.watchdog import watch
from service.errors import Problem
from service.settings import Settings
from service.telemetry import request_context
from service.telemetry.log import RequestLog
from service.telemetry.metrics import Metrics
from service.telemetry.request_context import PROBE_PATHS, RequestContext
from service.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

COMPAT_APIS = (openai, open_inference)
"""Routes of other systems' APIs, which have error formats of their own."""
ROUTES = (generate, edit, encode, nearest, info, films, *COMPAT_APIS)

TELEMETRY_FLUSH_SECONDS = 0.02
"""How long finished requests are buffered before they are logged and counted; many at once cost less."""


def create_app(
    settings: Settings,
    device: torch.device | None = None,
    authenticator: Authenticator | None = None,
    only: str | None = None,
    runner: type[Runner] = Runner,
    serve_early: bool = False,
    remote: RemoteEngine | None = None,
) -> "Application":
    """Create the application for the weights that `settings` name, or for `only` one of them.

    `device` overrides the settings' device. Without an `authenticator` no request needs a key. `runner` runs batches.
    Engines in other processes, which `remote` reaches, take the place of one in this process.
    With `serve_early` the application starts before its models are loaded, and requests wait for theirs.
    Raises ValueError for settings that this machine cannot fulfil.
    """
    device = device or choose_device(settings.device)
    app = Application(settings, device, authenticator, only, runner, serve_early=serve_early, remote=remote)
    for routes in ROUTES:
        app.include_router(routes.router)
    app.pages = add_pages(app, settings.lab)
    for kind in (Problem, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, on_error)
    return app


async def on_error(request: Request, error: Exception) -> Response:
    """Turn every exception of a route into a response."""
    app: Application = request.app
    return app.problem_response(request.scope, request_context.of(request), error)


class Application(FastAPI):
    """The service as an ASGI application.

    FastAPI routes requests. This class adds what every request needs: limits, authorization, headers, telemetry.
    """

    pages: PlaygroundFiles
    """Files that a DirectCall can respond with."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        authenticator: Authenticator | None,
        only: str | None,
        runner: type[Runner],
        *,
        serve_early: bool,
        remote: RemoteEngine | None,
    ) -> None:
        super().__init__(
            title="Drawbridge",
            version=VERSION,
            description="Samples from small generative models.",
            lifespan=Application.lifespan,
            dependencies=[Depends(refuse_get_body)],
            docs_url=None,
            redoc_url=None,
        )
        self.openapi_version = "3.0.3"  # the newest version that the bundled Swagger UI renders
        self.settings, self.device, self.authenticator = settings, device, authenticator
        self.only, self.runner, self.serve_early, self.remote = only, runner, serve_early, remote
        self.draining = False
        self.log = RequestLog(settings)
        self.finished: list[RequestContext] = []
        """Finished requests that are not logged and counted yet."""
        self.metrics = Metrics()
        self.reloading = asyncio.Lock()
        self.tracer = Tracer() if settings.tracing else None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Start the engine and load the models, serve until the end, and drain."""
        self.state.service = service = self._create_service()
        await self.engine_loop.start()
        if self.remote is not None:
            service.scope = self.remote.loader.scope
        gc.freeze()  # everything that exists now stays; the garbage collector need not visit it again
        await asyncio.to_thread(service.nearest.scan)
        await service.loader.start((self.settings.unconditional_model, self.settings.conditional_model))
        loading = asyncio.create_task(self._finish_loading(service.loader))
        if not self.serve_early:
            await loading
        yield
        loading.cancel()
        await self.drain()
        self.flush_telemetry()
        service.loader.shutdown()
        service.nearest.thread.shutdown(cancel_futures=True)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def _create_service(self) -> AppContext:
        """An engine without models, what loads them, and the engine's loop."""
        self.engine_loop: EngineLoop
        service: AppContext

        def serve(catalog: Catalog) -> None:
            service.serve(catalog)

        if self.remote is not None:
            torch.set_num_threads(self.settings.threads)
            service = AppContext(self.settings, Catalog(), self.remote, "")
            service.loader = loader = self.remote.loader
            loader.serve, self.remote.replayed = serve, self.metrics.replayed.inc
            self.engine_loop = RemoteLoop(self.remote)
            return service
        engine, models, scope = create_engine(self.settings, self.device, self.metrics, serve, self.only, self.runner)
        service = AppContext(self.settings, Catalog(), engine, scope)
        service.loader = models
        self.engine_loop = create_loop(engine, self.device)
        return service

    async def _finish_loading(self, loader: Loader) -> None:
        """Wait until the models of the start are loaded."""
        started_at = time.perf_counter()
        await loader.started.wait()
        loaded, seconds = len(loader.catalog.loaded), time.perf_counter() - started_at
        log.info("models in memory: %d of %d, after %.2f s", loaded, len(loader.catalog.models), seconds)
        gc.collect()
        gc.freeze()  # likewise

    # -- reload and watchdog -------------------------------------------------------------------------------------------

    async def reload(self) -> None:
        """Load new weights beside the running ones. Weights that do not load change nothing.

        New weights warm up on a thread and take requests from then on. The weights that they replace finish their
        requests, and can be requested by version until the next replacement.
        """
        async with self.reloading:
            service: AppContext = self.state.service
            before = {model.key for model in service.catalog.models.values()}
            await service.loader.reload()
            await asyncio.to_thread(service.nearest.scan)
            new, broken = service.catalog, (*service.catalog.broken, *service.nearest.broken)
            added = sorted(model.key for model in new.models.values() if model.key not in before)
            if self.authenticator is not None and self.settings.keys is not None:
                self._reload_keys(self.authenticator, self.settings.keys)
            self.metrics.reloads["broken" if broken else "done"].inc()
            log.info("reloaded weights: new %s; broken %s", ", ".join(added) or "none", ", ".join(broken) or "none")

    def _reload_keys(self, authenticator: Authenticator, path: Path) -> None:
        try:
            authenticator.keys = keys.read(path)
        except ValueError as error:
            log.error("keys not reloaded: %s", error)

    async def watch(self) -> None:
        """Exit the process if it makes no progress, so that the supervisor replaces it; sample memory now and then."""
        engine = self.state.service.engine
        await watch(engine, self.settings.watchdog_timeout, partial(self.metrics.sample_memory, self.device))

    async def drain(self) -> None:
        """Refuse new requests, and finish accepted ones or fail them after the drain timeout."""
        self.draining = True
        self.state.service.engine.stop()
        await self.state.service.loader.close()
        await self.engine_loop.stop(self.settings.drain_timeout)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        context = request_context.begin(scope)
        scope["app"] = self
        if context.method == "HEAD":  # what GET would respond, without its body
            scope = {**scope, "method": "GET"}
        await self._serve(context, self._route, scope, receive, send)

    async def admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application at the admin port."""
        scope["admin"] = True
        await self(scope, receive, send)

    async def resume(
        self,
        context: RequestContext,
        endpoint: Callable[[Request], Awaitable[Response]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Let `endpoint` answer a request that has its context, and is authorized, already."""

        async def respond(request: Request, send: Send) -> None:
            try:
                response = await endpoint(request)
                await response(scope, request.receive, send)
            except Exception as error:
                if context.status:  # the response has started
                    raise
                await self.problem_response(scope, context, error)(scope, request.receive, send)

        scope["app"] = self
        await self._serve(context, respond, scope, receive, send)

    async def _serve(
        self,
        context: RequestContext,
        respond: Callable[[Request, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Respond with the headers of every response, and record the request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message["headers"], *context.headers()]
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            elif context.method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            await respond(Request(scope, limited(receive, scope, self.settings), send_with_headers), send_with_headers)
        except Exception:  # the response has started, and ends incomplete
            context.failed(Problem(""))
            raise
        except asyncio.CancelledError:  # how Ray Serve says that a client disconnected
            context.client_disconnected()
            raise
        finally:
            self.finish(context)

    async def _route(self, request: Request, send: Send) -> None:
        scope, context = request.scope, request_context.of(request)
        try:
            self.authorize(scope, context)
            openai.check_prefix(scope, context.path)
        except Problem as error:
            await self.problem_response(scope, context, error)(scope, request.receive, send)
            return
        try:
            await super().__call__(scope, request.receive, send)
        except Exception:  # Starlette raises it again after the response
            if not context.problem:
                raise
        finally:
            context.route = getattr(scope.get("route"), "path", context.route)

    def authorize(self, scope: Scope, context: RequestContext) -> None:
        """Raises the Problem for which a request is refused: wrong port, no valid key, quota, too long a body."""
        if self.settings.admin_port is not None and ("admin" in scope) != (context.path in PROBE_PATHS):
            raise errors.NotFound(f"{context.path} is not served on this port")
        if self.authenticator is not None:
            lease = self.authenticator.authenticate(scope, context.path)
            if lease is not None:
                context.lease = lease
                lease.acquire()
        check_content_length(scope, self.settings)

    def finish(self, context: RequestContext) -> None:
        """Record a finished request: release its quota now, log and count it soon."""
        if context.lease is not None:
            context.lease.release()
        if context.loaded is not None:
            self.state.service.loader.release(context.loaded)
        context.finished_at = time.perf_counter()
        self.finished.append(context)
        if len(self.finished) == 1:
            asyncio.get_running_loop().call_later(TELEMETRY_FLUSH_SECONDS, self.flush_telemetry)

    def flush_telemetry(self) -> None:
        """Log, count and trace all requests that are finished."""
        finished, self.finished = self.finished, []
        self.metrics.record_requests(finished)
        if self.tracer is not None:
            for context in finished:
                self.tracer.record_request(context)
        self.log.write(finished)

    # -- errors and documentation --------------------------------------------------------------------------------------

    def problem_response(self, scope: Scope, context: RequestContext, error: Exception) -> Response:
        """The response to an exception: problem+json (RFC 9457), or the error format of the API at the path.

        Unexpected exceptions are logged; the client gets no details.
        """
        if isinstance(error, ClientDisconnect):
            context.client_disconnected()
            return Response(status_code=context.status)
        problem = error if isinstance(error, Problem) else _to_problem(scope, context, error)
        context.failed(problem)
        api = openai if isinstance(problem, openai.MissingPrefix) else _compat_api(context.path)
        if api is not None:
            status, body = api.error(problem)
            return JSONResponse(body, status, headers=problem.headers)
        body = {**problem.body(), "instance": scope["path"]}
        return JSONResponse(body, problem.status, headers=problem.headers, media_type=errors.MEDIA_TYPE)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = openapi_schema.complete(super().openapi(), {api.router.prefix: api.error for api in COMPAT_APIS})
        if self.authenticator is not None:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        return schema


def _compat_api(path: str) -> ModuleType | None:
    """The API that a path belongs to."""
    return next((api for api in COMPAT_APIS if f"{path}/".startswith(f"{api.router.prefix}/")), None)


def _to_problem(scope: Scope, context: RequestContext, error: Exception) -> Problem:
    if isinstance(error, HTTPException) and error.status_code == 404:
        api = _compat_api(context.path)
        return errors.NotFound(
            f"nothing is at {scope['path']}; {f'see {context.root}/docs' if api is None else api.CONTENTS}"
        )
    if isinstance(error, HTTPException) and error.status_code == 405:
        routes = [route for part in ROUTES for route in part.router.routes if isinstance(route, APIRoute)]
        matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
        methods = {method for route in matching for method in route.methods or ()}
        methods |= {"HEAD"} if "GET" in methods else set()
        allowed = ", ".join(sorted(methods)) or (error.headers or {}).get("Allow", "GET")
        detail = f"{scope['path']} takes {allowed}, not {context.method}"
        return errors.MethodNotAllowed(detail, headers={"Allow": allowed})
    if isinstance(error, HTTPException):  # Starlette's own, about a malformed form
        return errors.InvalidParameter(str(error.detail))
    if isinstance(error, WeightsError):  # the loader is about to find that out, too
        return errors.UnknownModel(f"a model cannot be served ({error})")
    log.error("unexpected error in request %s", context.id, exc_info=error)
    return Problem("the service failed unexpectedly; its log has the details")
