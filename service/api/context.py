"""What the routes share, made once per application."""

import asyncio
import secrets
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from service.api.awaiting import AwaitedGeneration, DisconnectMonitor
from service.engine.catalog import Catalog, Model
from service.engine.interface import Loader, RequestEngine
from service.engine.request import DeadlineExceeded, EngineError, Request, Ticket
from service.generation.nearest import NearestImages
from service.generation.pending import to_problem
from service.generation.selection import find_model
from service.settings import Settings
from service.telemetry import request_context


@dataclass
class AppContext:
    """Settings, models and the engine."""

    settings: Settings
    catalog: Catalog
    """The weights that are served; whenever a model is loaded or unloaded, another catalog replaces it."""
    engine: RequestEngine
    scope: str
    """What a seed's bytes depend on besides weights and parameters: kind of device, versions, threads."""
    loader: Loader = field(init=False, repr=False)
    """Loads models into the engine."""
    nearest: NearestImages = field(init=False, repr=False)
    """Finds training images."""
    parse_cache: dict[Hashable, Any] = field(default_factory=dict)
    """Parsed requests by everything but their seed, valid for this `catalog` (`service/api/parsing.py`)."""

    def __post_init__(self) -> None:
        self.disconnects = DisconnectMonitor()
        self.nearest = NearestImages(self.settings.weights, self.settings.threads)

    def serve(self, catalog: Catalog) -> None:
        """Serve the weights of `catalog` from now on."""
        self.catalog, self.parse_cache = catalog, {}

    def new_seed(self) -> int:
        """A random seed for a request that names none; JavaScript's numbers hold it exactly."""
        return secrets.randbelow(2**53)

    async def generate(self, request: Request, model: Model, http: HTTPRequest, seed: int | None = None) -> Ticket:
        """Run `request` to its end. Raises the Problem that it ended with, or ClientDisconnect."""
        request, model = await self.load(request, model, http)
        pending = self.pending(request, model, http, seed)
        async with pending as ticket:
            await pending.finished()
        return ticket

    async def load(self, request: Request, model: Model, http: HTTPRequest) -> tuple[Request, Model]:
        """Wait until `model` is in memory, where it stays until the HTTP request ends.

        Returns `request` with what is left of its timeout, and the model in memory. Raises TimedOut, UnknownModel if
        its weights cannot be served, or Unavailable.
        """
        context, asked_at = request_context.of(http), time.perf_counter()
        if context.loaded is not None and context.loaded.key == model.key:
            return request, context.loaded
        try:
            async with asyncio.timeout(request.timeout):
                context.loaded = await self.loader.use(model)
        except TimeoutError:
            raise to_problem(DeadlineExceeded(f"{model.name} was not loaded within {request.timeout:g} s")) from None
        except EngineError as error:
            find_model(self.catalog, model.key)
            raise to_problem(error) from None
        if request.timeout is not None and model.runner is None:
            waited = time.perf_counter() - asked_at
            request = request._replace(timeout=round(max(0.0, request.timeout - waited), 3))
        return request, context.loaded

    def pending(self, request: Request, model: Model, http: HTTPRequest, seed: int | None = None) -> AwaitedGeneration:
        """`request` in the engine, as long as its client waits; `load` loaded its model."""
        context = request_context.of(http)
        context.model, context.digest, context.seed = model.name, model.digest, seed
        return AwaitedGeneration(self.engine, request, context, http.receive, self.disconnects)
