"""/generate and /interpolate."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api import openapi_schema, parsing
from service.api.context import AppContext
from service.api.responses import respond
from service.api.uploading import read_images
from service.codecs import formats
from service.codecs.formats import ANIMATION_FORMATS, IMAGE_FORMATS, Format
from service.errors import InvalidParameter, Problem
from service.generation.codes import encode_endpoints, with_endpoint_codes
from service.generation.parameters import Generate, Interpolate
from service.generation.plan import plan_interpolation
from service.generation.selection import choose_model

router = APIRouter()

IMAGES = {"image": True}
"""The uploads of most routes that take some: one or several images."""


def documented(
    schema: type[BaseModel],
    formats: Sequence[Format[Any]],
    *,
    body: bool = True,
    uploads: Mapping[str, bool] = MappingProxyType({}),
    problems: Sequence[type[Problem]] = (),
) -> dict[str, Any]:
    """OpenAPI of a route that reads its parameters itself; `body` and `uploads` say what it takes besides the query.

    `problems` are those of a status for which this route has others than most.
    """
    responses = {"200": {"description": "As requested.", "content": {format_.media_type: {} for format_ in formats}}}
    responses |= openapi_schema.problem_responses(problems, None)
    extra = {"parameters": openapi_schema.queries(schema), "responses": responses}
    if body:
        extra["requestBody"] = openapi_schema.body(schema, uploads)
    else:
        responses["304"] = {"description": "If-None-Match matches the ETag."}
    return {"tags": ["generate"], "response_class": Response, "openapi_extra": extra}


@router.get("/generate", **documented(Generate, IMAGE_FORMATS, body=False))
@router.post("/generate", **documented(Generate, IMAGE_FORMATS))
async def generate(request: Request) -> Response:
    """Generate images. The same model, seed and first image give the same bytes, alone or in any batch."""
    service: AppContext = request.app.state.service
    if parsing.is_form(request.scope):
        parsed = await parsing.parse_generate_form(service, request)
    else:
        parsed = parsing.parse_generate(service, request.scope, await request.body())
    return await respond(request, parsed.plan, parsed.format, deterministic=parsed.deterministic)


@router.get("/interpolate", **documented(Interpolate, ANIMATION_FORMATS, body=False))
@router.post("/interpolate", **documented(Interpolate, ANIMATION_FORMATS, uploads=IMAGES))
async def interpolate(request: Request) -> Response:
    """Interpolate between two seeds, two labels at one seed, or two uploads (form fields `image`, as for /encode)."""
    service: AppContext = request.app.state.service
    parameters, files = await parsing.read(request, Interpolate)
    model = choose_model(service.catalog, service.settings, parameters, uploads=bool(files))
    format_ = formats.negotiate(ANIMATION_FORMATS, parameters.format, request.headers.get("accept"))
    if "polarity" in parameters.model_fields_set and not files:
        raise InvalidParameter("polarity: only with uploaded images")
    images = await read_images(files, model, parameters, service.settings, max_images=2)
    plan = plan_interpolation(parameters, model, format_.name, images, service.new_seed)
    if images:
        codes = (await service.generate(encode_endpoints(plan), model, request, seed=plan.seed)).result().images
        plan = with_endpoint_codes(plan, codes)
    deterministic = bool(parameters.model and parameters.seed) and plan.reproducible
    return await respond(request, plan, format_, deterministic=deterministic)
