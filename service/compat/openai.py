"""/v1: OpenAI's images API, for clients written for it.

A prompt that names a class of the model ("seven", "a pizza") generates that class; a prompt that asks for any ("any",
or nothing) generates any. `seed`, `first`, `num_inference_steps`, `guidance_scale` and, for edits, `strength` are
extensions, sent with `extra_body` of OpenAI's client.
"""

import base64
import io
import json
import re
import time
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import Field
from starlette.types import Scope

from service.api import openapi_schema, parsing, responses
from service.api.awaiting import AwaitedGeneration
from service.api.context import AppContext
from service.api.responses import ImageStream
from service.api.uploading import read_images, read_masked_image
from service.codecs import streams
from service.codecs.formats import EVENTS
from service.codecs.png import Images
from service.compat.prompts import labels_in
from service.engine.catalog import Model
from service.engine.request import Ticket
from service.errors import InvalidParameter, NotFound, Problem
from service.generation.parameters import Generate, Inpaint, Parameters, Seed, Vary, validate
from service.generation.plan import GenerationPlan, plan_edit, plan_generation, with_previews
from service.generation.selection import choose_model, default_models, find_editor, find_model

router = APIRouter(prefix="/v1", tags=["openai"])

MAX_SIDE = 2048
MAX_PIXELS = 2**28
"""Pixels of all images of a request, enlarged: 256 of 1024x1024."""
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}


CONTENTS = "of OpenAI's API, this service has /v1/models, /v1/images/generations and /v1/images/edits"
ADD_PREFIX = "OpenAI's API is at /v1 of this service: add /v1 to the client's base_url"

OutputFormat = Literal["png", "webp", "jpeg"]


class MissingPrefix(NotFound):
    """A request of this API without /v1."""


class Generations(Parameters):
    """Parameters of /v1/images/generations: OpenAI's and four extensions."""

    prompt: str = Field(max_length=32_000, description='Names a class of the model, or asks for "any".')
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str = "auto"
    output_format: OutputFormat = "png"
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    seed: Seed | None = None
    first: int = Field(0, ge=0, le=2**53)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, allow_inf_nan=False)
    background: Any = Field(None, description="Accepted without effect, like the parameters below.")
    moderation: Any = None
    output_compression: Any = None
    quality: Any = None
    style: Any = None
    user: Any = None


class Edits(Generations):
    """Parameters of /v1/images/edits, beside the uploaded image and mask: OpenAI's and our extensions."""

    strength: float | None = Field(None, description="As for /vary, or with a mask as for /inpaint.")
    input_fidelity: Any = Field(None, description="Accepted without effect.")


class ImageFile(Generate):
    """Parameters of /v1/images/file: those of /generate for one image, and how it is sent."""

    format: OutputFormat = "png"
    size: str = "auto"


DOCUMENTED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": openapi_schema.json_body(Generations)}},
    },
    "responses": {"200": {"content": {EVENTS.media_type: {}}}},
}
DOCUMENTED_EDITS: dict[str, Any] = {
    "requestBody": openapi_schema.body(Edits, {"image": False, "mask": False}),
    "responses": {"200": {"content": {EVENTS.media_type: {}}}},
}
DOCUMENTED_FILE: dict[str, Any] = {
    "parameters": openapi_schema.queries(ImageFile),
    "responses": {"200": {"content": {f"image/{kind}": {} for kind in SAVE_OPTIONS}}},
}
"""OpenAPI of the routes, which read their parameters themselves."""


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """List the models."""
    service: AppContext = request.app.state.service
    return {"object": "list", "data": [_describe(model) for model in service.catalog.models.values()]}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe one model."""
    return _describe(find_model(request.app.state.service.catalog, name))


@router.post("/images/generations", openapi_extra=DOCUMENTED)
async def generations(request: Request) -> Response:
    """Generate images of the class that the prompt names."""
    service: AppContext = request.app.state.service
    body, files = await parsing.read(request, Generations)
    if files:
        raise InvalidParameter("image: this route takes only a prompt")
    if body.stream and body.response_format == "url":
        raise InvalidParameter("response_format: a stream carries b64_json; leave it out, or do not stream")
    labels = labels_in(body.prompt, _prompted_model(service, body.model))
    parameters = validate(Generate, _native(body, body.model, labels))
    chosen = choose_model(service.catalog, service.settings, parameters)
    encoder = _encoder(body, chosen)
    plan = plan_generation(parameters, chosen, "png", service.settings.max_images, service.new_seed)
    if body.response_format == "url":
        parameters = parameters.model_copy(update={"seed": plan.seed})
        data = [{"url": _file_url(request, parameters, chosen, i, body)} for i in range(body.n)]
        return JSONResponse(encoder.document(data, plan.seed))
    return await _respond(request, body, plan, encoder)


@router.post("/images/edits", openapi_extra=DOCUMENTED_EDITS)
async def edits(request: Request) -> Response:
    """Complete the transparent part of an image, or vary an image without one, as the class that the prompt names."""
    service: AppContext = request.app.state.service
    names = ("image", "image[]", "mask")  # the official client calls an image in a list `image[]`
    body, files = await parsing.read_uploads(request, Edits, names, 3)
    if body.response_format == "url":
        raise InvalidParameter("response_format: no URL holds an edited image; leave it out, for b64_json")
    prompted = _prompted_model(service, body.model)
    chosen = find_editor(service.catalog, body.model or (prompted.name if prompted else ""))
    strength = {} if body.strength is None else {"strength": body.strength}
    values = _native(body, chosen.key, labels_in(body.prompt, chosen)) | strength
    parameters: Vary = validate(Inpaint, values)
    images, settings = files["image"] + files["image[]"], service.settings
    image, mask = await read_masked_image(
        images, files["mask"], chosen, parameters, settings, white=False
    ) or (None, None)  # fmt: skip
    if image is None:
        parameters = validate(Vary, values)
        (image,) = await read_images(images, chosen, parameters, settings, max_images=1)
    encoder = _encoder(body, chosen, "image_edit")
    plan = plan_edit(parameters, chosen, "png", image, mask, settings.max_images, service.new_seed)
    return await _respond(request, body, plan, encoder)


@router.get("/images/file", tags=["generate"], response_class=Response, openapi_extra=DOCUMENTED_FILE)
async def image_file(request: Request) -> Response:
    """The file at a URL of /v1/images/generations. It is generated now: nothing is stored."""
    service: AppContext = request.app.state.service
    parameters, _ = await parsing.read(request, ImageFile)
    model = choose_model(service.catalog, service.settings, parameters)
    plan = plan_generation(parameters, model, "png", 1, service.new_seed)
    encoder = OpenAIEncoder(parse_size(parameters.size, model), parameters.format)
    (image,) = (await service.generate(plan.request, model, request, seed=plan.seed)).result().images
    content = await responses.encode(request, lambda: encoder.encode(image), encoder.size_in_images(1))
    deterministic = parameters.model is not None and parameters.seed is not None
    policy = responses.cache_control(request, plan, deterministic=deterministic)
    return Response(content, media_type=f"image/{encoder.format}", headers={"Cache-Control": policy})


def check_prefix(scope: Scope, path: str) -> None:
    """Raises MissingPrefix for a request of this API without /v1.

    /models is a route of the service itself, so there only OpenAI's clients are recognized, by a header.
    """
    if path.startswith("/images/") or (
        path.startswith("/models") and any(name == b"x-stainless-lang" for name, _ in scope["headers"])
    ):
        raise MissingPrefix(ADD_PREFIX)


def error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a problem in this API's error format."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    status = 400 if problem.status == 422 else problem.status
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    errors = problem.extra.get("errors") or [{}]
    code = problem.kind.replace("-", "_")
    return status, {
        "error": {"message": problem.detail, "type": kind, "param": errors[0].get("parameter"), "code": code}
    }


def _native(body: Generations, model: str | None, labels: list[str]) -> dict[str, Any]:
    """The parameters of this service for those of a request."""
    return {
        "model": model, "label": labels, "n": body.n, "seed": body.seed, "first": body.first,
        "steps": body.num_inference_steps, "guidance": body.guidance_scale,
    }  # fmt: skip


def _encoder(body: Generations, model: Model, operation: str = "image_generation") -> "OpenAIEncoder":
    """The encoder of the requested images. Raises InvalidParameter if they are too large."""
    size = parse_size(body.size, model)
    if body.n * size[0] * size[1] > MAX_PIXELS:
        raise InvalidParameter(f"n: at most {MAX_PIXELS // (size[0] * size[1])} images of this size")
    return OpenAIEncoder(size, body.output_format, operation)


async def _respond(request: Request, body: Generations, plan: GenerationPlan, encoder: "OpenAIEncoder") -> Response:
    """Run a plan, and respond with the images in base64 or as a stream."""
    service: AppContext = request.app.state.service
    if body.stream:
        engine_request = with_previews(plan.request) if body.partial_images else plan.request
        engine_request, model = await service.load(engine_request, plan.model, request)
        pending = service.pending(engine_request, model, request, seed=plan.seed)
        return PartialImageStream(pending, encoder, body.partial_images)
    result = (await service.generate(plan.request, plan.model, request, seed=plan.seed)).result()

    def encode() -> bytes:
        data = [{"b64_json": encoder.base64(image)} for image in result.images]
        return json.dumps(encoder.document(data, plan.seed)).encode()

    content = await responses.encode(request, encode, encoder.size_in_images(len(result.images)))
    return Response(content, media_type="application/json")


def _prompted_model(service: AppContext, name: str | None) -> Model | None:
    """The model whose classes a prompt may name: the default of requests with a label if the request names no model."""
    if name is not None:
        return find_model(service.catalog, name)
    default = default_models(service.catalog, service.settings)["conditional"]
    return None if default is None else service.catalog.models[default]


def _file_url(request: Request, parameters: Generate, model: Model, index: int, body: Generations) -> str:
    """The URL of the file of image `index`."""
    service: AppContext = request.app.state.service
    single = parameters.model_copy(update={"n": 1, "first": parameters.first + index})
    query = plan_generation(single, model, body.output_format, 1, service.new_seed).location.partition("?")[2]
    return str(request.url_for("image_file").replace(query=f"{query}&size={body.size}"))


def parse_size(size: str, model: Model) -> tuple[int, int]:
    """Width and height of `56x28`; `auto` is the size of the model's images. Raises InvalidParameter."""
    own_height, own_width, *_ = model.image_shape
    if size == "auto":
        return own_width, own_height
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", size)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not (own_width <= width <= MAX_SIDE and own_height <= height <= MAX_SIDE):
        sides = f"a width of {own_width} to {MAX_SIDE} and a height of {own_height} to {MAX_SIDE} pixels"
        raise InvalidParameter(f"size: auto, or WIDTHxHEIGHT with {sides}")
    return width, height


def enlarge(image: Images, size: tuple[int, int]) -> Image.Image:
    """A picture of width and height `size`: the image on black, enlarged without interpolation in its aspect ratio."""
    picture = Image.fromarray(image)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    scaled = (round(picture.width * scale), round(picture.height * scale))
    enlarged = picture.resize(scaled, Image.Resampling.NEAREST)
    if scaled == size:
        return enlarged
    canvas = Image.new(picture.mode, size)
    canvas.paste(enlarged, ((size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2))
    return canvas


class OpenAIEncoder:
    """Encodes images as this API does, enlarged to `size`. It is a StreamEncoder too."""

    def __init__(self, size: tuple[int, int], format_: str, operation: str = "image_generation") -> None:
        """`operation` is the first part of the names of events."""
        self.size, self.format, self.operation = size, format_, operation
        self.metadata = {"created_at": int(time.time()), "size": f"{size[0]}x{size[1]}", "output_format": format_,
                         "quality": "auto", "background": "opaque"}  # fmt: skip

    def document(self, data: list[dict[str, str]], seed: int) -> dict[str, Any]:
        """The body of a response with these images."""
        return {**self.metadata, "created": self.metadata["created_at"], "data": data, "seed": seed}

    def size_in_images(self, count: int) -> int:
        """The number of small images that have as many pixels as `count` enlarged ones."""
        return responses.in_small_images(count, self.size)

    def encode(self, image: Images) -> bytes:
        """One image's file."""
        buffer = io.BytesIO()
        enlarge(image, self.size).save(buffer, self.format, **SAVE_OPTIONS[self.format])
        return buffer.getvalue()

    def base64(self, image: Images) -> str:
        """One image's file in base64."""
        return base64.b64encode(self.encode(image)).decode()

    def event(self, kind: str, image: Images, **fields: Any) -> bytes:
        """A server-sent event with an image."""
        name = f"{self.operation}.{kind}"
        return streams.event(name, {"type": name, **self.metadata, "b64_json": self.base64(image), **fields})

    def begin(self) -> bytes:
        return b""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        details = {"text_tokens": 0, "image_tokens": 0}
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details}
        return self.event("completed", image, usage=usage)

    def end(self) -> bytes:
        return b""


class PartialImageStream(ImageStream):
    """Finished images as events, and before each a number of partial images, spread evenly over its steps."""

    def __init__(self, pending: AwaitedGeneration, encoder: OpenAIEncoder, partial_images: int) -> None:
        super().__init__(pending, encoder, EVENTS, [(b"cache-control", b"no-store")])
        self.openai_encoder, self.partial_images, self.sent_partials = encoder, partial_images, 0
        self.inline = encoder.size_in_images(1) <= responses.MAX_INLINE_IMAGES

    def progress_events(self, ticket: Ticket) -> bytes:
        done = 1 - ticket.remaining_steps / (len(ticket.images) * ticket.request.steps_per_row)
        if self.sent_partials == self.partial_images or done * (self.partial_images + 1) < self.sent_partials + 1:
            return b""
        previews = [(i, ticket.previews.pop(i, None)) for i in sorted(ticket.previews)]
        events = [self.openai_encoder.event("partial_image", image, partial_image_index=self.sent_partials)
                  for _, image in previews if image is not None]  # fmt: skip
        self.sent_partials += bool(events)
        return b"".join(events)

    def error_event(self, problem: Problem) -> bytes:
        return streams.event("error", {"type": "error", **error(problem)[1]["error"]})


def _describe(model: Model) -> dict[str, Any]:
    created = int(datetime.fromisoformat(model.manifest.created).timestamp())
    return {"id": model.name, "object": "model", "created": created, "owned_by": "drawbridge"}
