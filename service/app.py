"""The application: parts put together, one error handler, limits on what comes in."""

import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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

from service import VERSION, catalog, errors
from service.catalog import Catalog
from service.engine.drivers import Driver, LoopDriver, ThreadDriver
from service.engine.engine import Engine
from service.engine.runner import Runner
from service.errors import Problem
from service.pages import add_pages
from service.routes import about, draw, encode, inference, openai
from service.settings import Settings
from service.state import ClientGone, State

log = logging.getLogger(__name__)

ROUTES = (draw, encode, about, openai, inference)

SEATS = {"cpu": 16, "cuda": 128}
"""Rows of a step unless set otherwise. What more than 16 need falls out of a core's cache (`python -m benchmarks
engine` shows it); a GPU's number is a guess that nobody has measured yet."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(settings: Settings, served: Catalog | None = None, device: torch.device | None = None) -> "Application":
    """The service on `settings`; its models are those of `settings.weights` unless `served` is given, and likewise
    `device`.
    """
    device = device or choose_device(settings.device)

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        if device.type == "cpu":
            torch.set_num_threads(settings.threads)
        models = catalog.load(settings.weights, device) if served is None else served
        seats = settings.seats or SEATS[device.type]
        engine = start_engine(models, device, seats, settings.queue_images)
        kernels = f"{torch.backends.cpu.get_cpu_capability()} threads {settings.threads}"
        scope = f"{VERSION} {device.type} torch {torch.__version__} numpy {np.__version__} {kernels} seats {seats}"
        app.state.service = State(settings, models, engine, scope)
        driver = LoopDriver(engine) if device.type == "cpu" else ThreadDriver(engine)
        await driver.start()
        app.state.driver = driver
        gc.collect()
        gc.freeze()  # what is here stays, and need not be looked through again and again
        yield
        await app.drain()

    app = Application(
        settings,
        title="Drawbridge",
        version=VERSION,
        description=__doc__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.openapi_version = "3.0.3"  # the newest that the bundled Swagger UI draws
    for routes in ROUTES:
        app.include_router(routes.router)
    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    app.add_api_route("/docs", docs, include_in_schema=False)
    add_pages(app, settings.lab)
    for kind in (Problem, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, on_error)
    return app


def choose_device(name: str, worker: int = 0) -> torch.device:
    """The device of a worker, by its number: a GPU where there is one and `name` is not `cpu`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("DRAWBRIDGE_DEVICE is cuda, and torch sees no GPU; set it to cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", worker % torch.cuda.device_count())


def start_engine(models: Catalog, device: torch.device, seats: int, queue_images: int) -> Engine:
    """An engine with every model warm."""
    runners = {name: Runner(model.family, device, seats) for name, model in models.models.items()}
    for name, runner in list(runners.items()):
        before = time.perf_counter()
        try:
            runner.warm_up()
        except Exception as error:
            models.models.pop(name)
            runners.pop(name)
            models.broken[name] = f"does not draw: {error!r}"
            continue
        seconds = time.perf_counter() - before
        log.info("%s is warm after %.2f s; batches of %s", name, seconds, ", ".join(map(str, runner.sizes)))
    for name, why in models.broken.items():
        log.error("weights %s are not served: %s", name, why)
    return Engine(runners, seats=seats, queue_images=queue_images, clock=time.perf_counter)


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
    if isinstance(error, ClientGone):
        return Response(status_code=499)  # nobody reads it; the access log does
    if not isinstance(error, Problem):
        error = _as_problem(request, error)
    for other in (openai, inference):
        if request.url.path.startswith(other.router.prefix + "/"):
            status, told = other.error(error)
            return JSONResponse(told, status, headers=error.headers)
    body = {**error.body(), "instance": request.url.path}
    return JSONResponse(body, error.status, headers=error.headers, media_type=errors.MEDIA_TYPE)


def _as_problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException) and error.status_code == 404:
        return errors.NotFound(f"nothing is at {request.url.path}; see /docs")
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
    log.error("unforeseen error at %s", request.url.path, exc_info=error)
    return Problem("Something broke that should not; the log of the service says what.")


class Application(FastAPI):
    """FastAPI, but for the routes that draw: these are called straight from here.

    They read their parameters themselves, and what FastAPI does on the way costs several times what they do. It
    documents them, and answers whatever fits none. No body is longer than the settings say, whoever answers.
    """

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self.max_body, self.grace = settings.max_body_bytes, settings.drain_seconds
        self.direct: dict[tuple[str, str], Endpoint] = {
            (method, route.path): route.endpoint
            for route in (*draw.router.routes, *encode.router.routes)
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    async def drain(self) -> None:
        """Refuse draws from now on, and end those that are under way: with what is drawn, or why it is not."""
        driver: Driver = self.state.driver
        await driver.stop(self.grace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        request = Request(scope, limited(receive, self.max_body), send)
        endpoint = self.direct.get((scope["method"], scope["path"]))
        try:
            check_length(request, self.max_body)
            if endpoint is not None:
                response = await endpoint(request)
                await response(scope, request.receive, send)
        except Exception as error:
            response = await on_error(request, error)
            await response(scope, request.receive, send)
        else:
            if endpoint is None:  # FastAPI answers its own errors
                await super().__call__(scope, request.receive, send)


def check_length(request: Request, limit: int) -> None:
    """Raises BodyTooLarge where a request says that its body is longer than `limit` bytes."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise errors.BodyTooLarge(f"{int(value)} bytes; send at most {limit}")


def limited(receive: Receive, limit: int) -> Receive:
    """`receive`, which raises BodyTooLarge once more than `limit` bytes of a body have come."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise errors.BodyTooLarge(f"send at most {limit} bytes")
        return message

    return counted
