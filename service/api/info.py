"""Routes about the service: models, health, metrics."""

import asyncio
import contextlib
import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from models.store import WeightsError
from service.api.context import AppContext
from service.api.films import film_digest
from service.engine.catalog import Model
from service.engine.request import EngineError, Sample, StartState
from service.engine.request import Request as EngineRequest
from service.generation.selection import default_models, find_model

router = APIRouter()

PROBE_TIMEOUT = 10.0
OK = "ok"


@router.get("/models", tags=["models"])
async def models(request: Request) -> dict[str, Any]:
    """All models, their parameters, and the defaults for requests that name no model."""
    service: AppContext = request.app.state.service
    described = await asyncio.to_thread(_describe_all, service)
    return {"models": described, "defaults": default_models(service.catalog, service.settings)}


@router.get("/models/{name}", tags=["models"])
async def model(request: Request, name: str) -> dict[str, Any]:
    """One model and its manifest: where the weights come from and how good they are."""
    service: AppContext = request.app.state.service
    found = find_model(service.catalog, name)
    described = await asyncio.to_thread(_describe, service, found)
    return {**described, "manifest": dataclasses.asdict(found.manifest)}


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """Whether the process responds."""
    return {"status": "alive"}


@router.get(
    "/readyz", tags=["health"], responses={503: {"description": "Not ready.", "content": {"application/json": {}}}}
)
async def readyz(
    request: Request,
    model: Annotated[str | None, Query(description="Ask for this model alone, which then loads next.")] = None,
) -> JSONResponse:
    """Whether every model generates: each one in memory runs one real step now.

    After a start the service is ready once all models are loaded, or as many as the settings allow in memory. With
    `model` it is ready once this one is, or if a request for it would load it. Weights that do not load are listed, and
    so are damaged indexes of training images. The response is about the worker that serves the connection; a dead
    worker has no connections.
    """
    service: AppContext = request.app.state.service
    if model is None:
        asked = list(service.catalog.models.values())
        ready = service.loader.started.is_set()
    else:
        asked = [find_model(service.catalog, model)]
        ready = service.loader.state(asked[0]) != "loading"
        if not ready:
            service.loader.request(asked[0].name)
    results = await asyncio.gather(*(_health(service, one) for one in asked))
    ready = ready and bool(results) and set(results) <= {OK, "loading", "on demand"}
    health = {one.name if model is None else model: result for one, result in zip(asked, results, strict=True)}
    broken = {name: why for name, why in service.catalog.broken.items() if model is None or name in health}
    broken |= service.nearest.broken if model is None else {}
    body = {"status": "ready" if ready else "not ready", "models": health, "broken": broken}
    return JSONResponse(body, status_code=200 if ready else 503, headers={"Cache-Control": "no-store"})


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The metrics of all workers, for Prometheus."""
    service: AppContext = request.app.state.service
    request.app.flush_telemetry()
    page = await asyncio.to_thread(request.app.metrics.render, list(service.catalog.versions.values()))
    return Response(page, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})


def _describe_all(service: AppContext) -> list[dict[str, Any]]:
    """The models, without those whose manifests describe none: the loader is about to find that out, too."""
    described = []
    for model in service.catalog.models.values():
        with contextlib.suppress(WeightsError):
            described.append(_describe(service, model))
    return described


def _describe(service: AppContext, model: Model) -> dict[str, Any]:
    return {
        **model.describe(),
        "state": service.loader.state(model),
        "nearest": service.nearest.has(model),
        "film": film_digest(service.settings.weights, model),
    }


async def _health(service: AppContext, model: Model) -> str:
    """`ok`; what went wrong with one image in the fewest steps; or the state of a model that is not in memory."""
    if (state := service.loader.state(model)) != "loaded":
        return state
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
    return OK
