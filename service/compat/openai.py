"""/v1: OpenAI's images API, for clients written for it.

A prompt that names a digit ("seven", "a 7") generates that digit; a prompt that asks for any ("a digit", "any", or
nothing) generates any. `seed`, `first`, `num_inference_steps` and `guidance_scale` are extensions, sent with
`extra_body` of OpenAI's client.
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
from service.codecs import streams
from service.codecs.formats import EVENTS
from service.codecs.png import Images
from service.engine.catalog import Model
from service.engine.request import Ticket
from service.errors import InvalidParameter, NotFound, Problem
from service.generation.parameters import Generate, Parameters, Seed, validate
from service.generation.plan import plan_generation, with_previews
from service.generation.selection import choose_model, find_model

router = APIRouter(prefix="/v1", tags=["openai"])

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = {name: digit for digit, word in enumerate(WORDS) for name in (word, str(digit))}
OTHER_NUMBERS = {
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million",
}  # fmt: skip
ANY = {"any", "anything", "digit", "digits", "number", "numbers", "numeral", "numerals", "random", "mnist"}
"""Words of a prompt that asks for any digit."""
SIZES = re.compile(r"(?<![0-9])[0-9]++ ?(?:(?:x|×|by) ?[0-9]++|(?:px|pixels?|dpi|bits?|k|%)(?![a-z0-9]))")
"""Sizes and the like in a prompt, whose numbers are no digits to generate. It takes linear time: a long number is tried
once, from its start."""
TOKENS = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
ONE_DIGIT = 'prompt: name one digit from 0 to 9, as a word or a numeral, or ask for "any"'
MIN_SIDE, MAX_SIDE = 28, 2048
MAX_PIXELS = 2**28
"""Pixels of all images of a request, enlarged: 256 of 1024x1024."""
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}


CONTENTS = "of OpenAI's API, this service has /v1/models and /v1/images/generations; it does not edit or vary images"
ADD_PREFIX = "OpenAI's API is at /v1 of this service: add /v1 to the client's base_url"

OutputFormat = Literal["png", "webp", "jpeg"]


class MissingPrefix(NotFound):
    """A request of this API without /v1."""


class Generations(Parameters):
    """Parameters of /v1/images/generations: OpenAI's and four extensions."""

    prompt: str = Field(max_length=32_000, description='Names a digit, as a word or a numeral, or asks for "any".')
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
    """Generate images of the digit that the prompt names."""
    service: AppContext = request.app.state.service
    body, files = await parsing.read(request, Generations)
    if files:
        raise InvalidParameter("image: this route takes only a prompt")
    size = parse_size(body.size)
    if body.n * size[0] * size[1] > MAX_PIXELS:
        raise InvalidParameter(f"n: at most {MAX_PIXELS // (size[0] * size[1])} images of this size")
    if body.stream and body.response_format == "url":
        raise InvalidParameter("response_format: a stream carries b64_json; leave it out, or do not stream")
    values = {
        "model": body.model, "digit": digits_in(body.prompt), "n": body.n, "seed": body.seed, "first": body.first,
        "steps": body.num_inference_steps, "guidance": body.guidance_scale,
    }  # fmt: skip
    parameters = validate(Generate, values)
    chosen = choose_model(service.catalog, service.settings, parameters)
    plan = plan_generation(parameters, chosen, "png", service.settings.max_images, service.new_seed)
    encoder = OpenAIEncoder(size, body.output_format)
    if body.response_format == "url":
        parameters = parameters.model_copy(update={"seed": plan.seed})
        data = [{"url": _file_url(request, parameters, chosen, i, body)} for i in range(body.n)]
        return JSONResponse(encoder.document(data, plan.seed))
    if body.stream:
        engine_request = with_previews(plan.request) if body.partial_images else plan.request
        pending = service.pending(engine_request, chosen, request, seed=plan.seed)
        return PartialImageStream(pending, encoder, body.partial_images)
    result = (await service.generate(plan.request, chosen, request, seed=plan.seed)).result()

    def encode() -> bytes:
        data = [{"b64_json": encoder.base64(image)} for image in result.images]
        return json.dumps(encoder.document(data, plan.seed)).encode()

    content = await responses.encode(request, encode, encoder.size_in_images(len(result.images)))
    return Response(content, media_type="application/json")


@router.get("/images/file", tags=["generate"], response_class=Response, openapi_extra=DOCUMENTED_FILE)
async def image_file(request: Request) -> Response:
    """The file at a URL of /v1/images/generations. It is generated now: nothing is stored."""
    service: AppContext = request.app.state.service
    parameters, _ = await parsing.read(request, ImageFile)
    model = choose_model(service.catalog, service.settings, parameters)
    plan = plan_generation(parameters, model, "png", 1, service.new_seed)
    encoder = OpenAIEncoder(parse_size(parameters.size), parameters.format)
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


def digits_in(prompt: str) -> list[int]:
    """The digit that a prompt names, in a list; an empty list if it asks for any.

    Raises InvalidParameter if it names several digits, another number, or nothing that can be generated.
    """
    tokens = TOKENS.findall(SIZES.sub(" ", prompt.lower()))
    numbers = {token for token in tokens if token in NAMES or _is_other_number(token)}
    if len({NAMES.get(number) for number in numbers}) > 1 or any(number not in NAMES for number in numbers):
        raise InvalidParameter(ONE_DIGIT)
    if prompt.strip() and not numbers and not ANY.intersection(tokens):
        raise InvalidParameter(f"{ONE_DIGIT}; this prompt does neither")
    return [NAMES[number] for number in numbers][:1]


def _is_other_number(token: str) -> bool:
    """Whether a token is a number that is not a digit: 12, 1.5, twelve, twenty-one."""
    parts = re.split("[-.]", token)
    return all(part.isdigit() or part in OTHER_NUMBERS or part in WORDS for part in parts) and token not in NAMES


def _file_url(request: Request, parameters: Generate, model: Model, index: int, body: Generations) -> str:
    """The URL of the file of image `index`."""
    service: AppContext = request.app.state.service
    single = parameters.model_copy(update={"n": 1, "first": parameters.first + index})
    query = plan_generation(single, model, body.output_format, 1, service.new_seed).location.partition("?")[2]
    return str(request.url_for("image_file").replace(query=f"{query}&size={body.size}"))


def parse_size(size: str) -> tuple[int, int]:
    """Width and height of `28x28`, which is also what `auto` means. Raises InvalidParameter."""
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", "28x28" if size == "auto" else size)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise InvalidParameter(f"size: auto, or WIDTHxHEIGHT with sides of {MIN_SIDE} to {MAX_SIDE} pixels")
    return width, height


class OpenAIEncoder:
    """Encodes images as this API does, enlarged to `size` without interpolation. It is a StreamEncoder too."""

    def __init__(self, size: tuple[int, int], format_: str) -> None:
        self.size, self.format = size, format_
        self.metadata = {"created_at": int(time.time()), "size": f"{size[0]}x{size[1]}", "output_format": format_,
                         "quality": "auto", "background": "opaque"}  # fmt: skip

    def document(self, data: list[dict[str, str]], seed: int) -> dict[str, Any]:
        """The body of a response with these images."""
        return {**self.metadata, "created": self.metadata["created_at"], "data": data, "seed": seed}

    def size_in_images(self, count: int) -> int:
        """The number of images of the original size that have as many pixels as `count` enlarged ones."""
        return count * self.size[0] * self.size[1] // MIN_SIDE**2

    def encode(self, image: Images) -> bytes:
        """One image's file."""
        buffer = io.BytesIO()
        enlarged = Image.fromarray(image).resize(self.size, Image.Resampling.NEAREST)
        enlarged.save(buffer, self.format, **SAVE_OPTIONS[self.format])
        return buffer.getvalue()

    def base64(self, image: Images) -> str:
        """One image's file in base64."""
        return base64.b64encode(self.encode(image)).decode()

    def event(self, kind: str, image: Images, **fields: Any) -> bytes:
        """A server-sent event with an image."""
        name = f"image_generation.{kind}"
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
