"""What is served, and whether it is."""

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
from service.generation import plan

router = APIRouter()

PROBE_SECONDS = 10.0
NOT_READY: dict[str, Any] = {"description": "Not ready: the same, and no problem document.",
                             "content": {"application/json": {}}}  # fmt: skip


@router.get("/models", tags=["models"])
async def models(request: Request) -> dict[str, Any]:
    """The models, what each takes, and which draw where a request names none."""
    state: AppContext = request.app.state.service
    described = [model.describe() for model in state.catalog.models.values()]
    return {"models": described, "defaults": plan.default_models(state.catalog, state.settings)}


@router.get("/models/{name}", tags=["models"])
async def model(request: Request, name: str) -> dict[str, Any]:
    """One model, with its manifest: where it comes from and how good it is."""
    found = plan.find_model(request.app.state.service.engine.catalog, name)
    return {**found.describe(), "manifest": dataclasses.asdict(found.manifest)}


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "alive"}


@router.get(
    "/readyz", tags=["health"], responses={503: {"description": "Not ready.", "content": {"application/json": {}}}}
)
async def readyz(request: Request) -> JSONResponse:
    """Whether every model draws: each takes a real step on the device now. Weights that do not load are named.

    The worker that has the connection speaks for itself; one that is dead has no connections.
    """
    state: AppContext = request.app.state.service
    found = state.catalog.models.values()
    health = dict(zip(state.catalog.models, await asyncio.gather(*(_probe(state, one) for one in found)), strict=True))
    ready = bool(health) and set(health.values()) == {"ok"}
    body = {"status": "ready" if ready else "not ready", "models": health, "broken": state.catalog.broken}
    return JSONResponse(body, status_code=200 if ready else 503, headers={"Cache-Control": "no-store"})


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """What was counted in all workers, for Prometheus."""
    state: AppContext = request.app.state.service
    request.app.tell_all()
    page = await asyncio.to_thread(request.app.metrics.page, list(state.catalog.versions.values()))
    return Response(page, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})


async def _probe(state: AppContext, model: Model) -> str:
    """`ok`, or what went wrong with one image of the fewest steps."""
    steps, sampler = model.family.steps.minimum, model.sampler
    request = EngineRequest(model.key, (Sample(StartState(0, 0, 0 if model.family.classes else -1)),), steps, sampler)
    done = asyncio.Event()
    try:
        ticket = state.engine.submit(request, done.set)
        await asyncio.wait_for(done.wait(), PROBE_SECONDS)
        ticket.result()
    except TimeoutError:
        state.engine.cancel(ticket)
        return f"took no step within {PROBE_SECONDS:.0f} s"
    except EngineError as error:
        return str(error)
    return "ok"
