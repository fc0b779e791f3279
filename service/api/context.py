"""What the routes share, made once per application."""

import secrets
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest

from service.api.awaiting import AwaitedGeneration, DisconnectMonitor
from service.engine.catalog import Catalog, Model
from service.engine.engine import Engine
from service.engine.request import Request, Ticket
from service.settings import Settings
from service.telemetry import request_context


@dataclass
class AppContext:
    """Settings, models and the engine."""

    settings: Settings
    catalog: Catalog
    """The weights that are served; a reload replaces it."""
    engine: Engine
    scope: str
    """What a seed's bytes depend on besides weights and parameters: kind of device, versions, threads."""
    parse_cache: dict[Hashable, Any] = field(default_factory=dict)
    """Parsed requests by everything but their seed, valid for this `catalog` (`service/api/parsing.py`)."""

    def __post_init__(self) -> None:
        self.disconnects = DisconnectMonitor()

    def serve(self, catalog: Catalog) -> None:
        """Serve the weights of `catalog` from now on."""
        self.catalog, self.parse_cache = catalog, {}

    def new_seed(self) -> int:
        """A random seed for a request that names none; JavaScript's numbers hold it exactly."""
        return secrets.randbelow(2**53)

    async def generate(self, request: Request, model: Model, http: HTTPRequest, seed: int | None = None) -> Ticket:
        """Run `request` to its end. Raises the Problem that it ended with, or ClientDisconnect."""
        pending = self.pending(request, model, http, seed)
        async with pending as ticket:
            await pending.finished()
        return ticket

    def pending(self, request: Request, model: Model, http: HTTPRequest, seed: int | None = None) -> AwaitedGeneration:
        """`request` in the engine, as long as its client waits."""
        context = request_context.of(http)
        context.model, context.digest, context.seed = model.name, model.digest, seed
        return AwaitedGeneration(self.engine, request, context, http.receive, self.disconnects)
