"""/v1: OpenAI's images API, for clients written for it.

A prompt that names a digit ("seven", "a 7") generates that digit; a prompt that names none generates any digit. `seed`,
`num_inference_steps` and `guidance_scale` are extensions, sent with `extra_body` of OpenAI's client.
"""

import base64
import io
import json
import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from PIL import Image
from pydantic import Field

from service.api import openapi_schema, parsing, responses
from service.api.awaiting import AwaitedGeneration
from service.api.context import AppContext
from service.api.responses import ImageStream
from service.codecs import streams
from service.codecs.formats import EVENTS
from service.codecs.png import Images
from service.engine.catalog import Model
from service.engine.request import Ticket
from service.errors import InvalidParameter, Problem
from service.generation.parameters import Generate, Parameters, Seed, validate
from service.generation.plan import plan_generation, with_previews
from service.generation.selection import choose_model, find_model

router = APIRouter(prefix="/v1", tags=["openai"])

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = {name: digit for digit, word in enumerate(WORDS) for name in (word, str(digit))}
MIN_SIDE, MAX_SIDE = 28, 512
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}


class Generations(Parameters):
    """Parameters of /v1/images/generations: OpenAI's and three extensions."""

    prompt: str = Field(max_length=32_000, description="Names a digit, as a word or a numeral, or none.")
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str = "auto"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    response_format: Literal["b64_json"] | None = None
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    seed: Seed | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, allow_inf_nan=False)
    background: Any = Field(None, description="Accepted without effect, like the parameters below.")
    moderation: Any = None
    output_compression: Any = None
    quality: Any = None
    style: Any = None
    user: Any = None


DOCUMENTED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": openapi_schema.plain(Generations)}}},
    "responses": {"200": {"content": {EVENTS.media_type: {}}}},
}
"""OpenAPI of the route, which reads its body itself."""


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
    values = {
        "model": body.model, "digit": digits_in(body.prompt), "n": body.n, "seed": body.seed,
        "steps": body.num_inference_steps, "guidance": body.guidance_scale,
    }  # fmt: skip
    parameters = validate(Generate, values)
    chosen = choose_model(service.catalog, service.settings, parameters)
    plan = plan_generation(parameters, chosen, "png", service.settings.max_images, service.new_seed)
    encoder = OpenAIEncoder(size, body.output_format)
    if body.stream:
        engine_request = with_previews(plan.request) if body.partial_images else plan.request
        pending = service.pending(engine_request, chosen, request, seed=plan.seed)
        return PartialImageStream(pending, encoder, body.partial_images)
    result = (await service.generate(plan.request, chosen, request, seed=plan.seed)).result()
    # Enlarged images take longer to encode than the event loop may be blocked.
    count = len(result.images) * size[0] * size[1] // MIN_SIDE**2
    content = await responses.encode(
        request, lambda: json.dumps(encoder.document(result.images, plan.seed)).encode(), count
    )
    return Response(content, media_type="application/json")


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
    """The digit that a prompt names, in a list, or an empty list. Raises InvalidParameter if it names several."""
    words = {word for word in re.findall(r"[a-z]+|[0-9]+", prompt.lower()) if word in NAMES or word[0].isdigit()}
    digits = {NAMES.get(word) for word in words}
    if len(digits) > 1 or None in digits:
        raise InvalidParameter("prompt: name one digit, as a word or a numeral, or none")
    return [digit for digit in digits if digit is not None]


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

    def document(self, images: Iterable[Images], seed: int) -> dict[str, Any]:
        """The body of a response with all images."""
        data = [{"b64_json": self.encode(image)} for image in images]
        return {**self.metadata, "created": self.metadata["created_at"], "data": data, "seed": seed}

    def encode(self, image: Images) -> str:
        """One image's file in base64."""
        buffer = io.BytesIO()
        enlarged = Image.fromarray(image).resize(self.size, Image.Resampling.NEAREST)
        enlarged.save(buffer, self.format, **SAVE_OPTIONS[self.format])
        return base64.b64encode(buffer.getvalue()).decode()

    def event(self, kind: str, image: Images, **fields: Any) -> bytes:
        """A server-sent event with an image."""
        name = f"image_generation.{kind}"
        return streams.event(name, {"type": name, **self.metadata, "b64_json": self.encode(image), **fields})

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
