"""Routes about the service: models, health, metrics."""

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.context import AppContext
from service.engine.catalog import Model
from service.engine.request import EngineError, Sample, StartState
from service.engine.request import Request as EngineRequest
from service.generation.selection import default_models, find_model

router = APIRouter()

PROBE_TIMEOUT = 10.0


@router.get("/models", tags=["models"])
async def models(request: Request) -> dict[str, Any]:
    """All models, their parameters, and the defaults for requests that name no model."""
    service: AppContext = request.app.state.service
    described = [model.describe() for model in service.catalog.models.values()]
    return {"models": described, "defaults": default_models(service.catalog, service.settings)}


@router.get("/models/{name}", tags=["models"])
async def model(request: Request, name: str) -> dict[str, Any]:
    """One model and its manifest: where the weights come from and how good they are."""
    found = find_model(request.app.state.service.catalog, name)
    return {**found.describe(), "manifest": dataclasses.asdict(found.manifest)}


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """Whether the process responds."""
    return {"status": "alive"}


@router.get(
    "/readyz", tags=["health"], responses={503: {"description": "Not ready.", "content": {"application/json": {}}}}
)
async def readyz(request: Request) -> JSONResponse:
    """Whether every model generates: each runs one real step now. Weights that do not load are listed.

    The response is about the worker that serves the connection; a dead worker has no connections.
    """
    service: AppContext = request.app.state.service
    served = service.catalog.models
    results = await asyncio.gather(*(_probe(service, model) for model in served.values()))
    health = dict(zip(served, results, strict=True))
    ready = bool(health) and set(results) == {"ok"}
    body = {"status": "ready" if ready else "not ready", "models": health, "broken": service.catalog.broken}
    return JSONResponse(body, status_code=200 if ready else 503, headers={"Cache-Control": "no-store"})


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The metrics of all workers, for Prometheus."""
    service: AppContext = request.app.state.service
    request.app.flush_telemetry()
    page = await asyncio.to_thread(request.app.metrics.render, list(service.catalog.versions.values()))
    return Response(page, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})


async def _probe(service: AppContext, model: Model) -> str:
    """`ok`, or what went wrong with one image in the fewest steps."""
    start = StartState(0, 0, 0 if model.family.classes else -1)
    request = EngineRequest(model.key, (Sample(start),), model.family.steps.minimum, model.sampler)
    done = asyncio.Event()
    try:
        ticket = service.engine.submit(request, done.set)
        await asyncio.wait_for(done.wait(), PROBE_TIMEOUT)
        ticket.result()
    except TimeoutError:
        service.engine.cancel(ticket)
        return f"no step within {PROBE_TIMEOUT:.0f} s"
    except EngineError as error:
        return str(error)
    return "ok"
