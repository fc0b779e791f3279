"""/v1: digits by OpenAI's images API, for clients that were written for it.

A thin translation: a prompt that names a digit ("seven", "a 7") is a draw of that digit, and one that names none is a
draw of any. `seed`, `num_inference_steps` and `guidance_scale` go beyond that API, as `extra_body` of its client.
"""

import base64
import io
import json
import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from PIL import Image

from service.api import openapi_schema, schemas
from service.api.context import AppContext, AwaitedGeneration
from service.api.generate import ImageStream, encoded
from service.api.schemas import Generations
from service.codecs import images
from service.codecs.images import Images
from service.engine.catalog import Model
from service.engine.request import Ticket
from service.errors import InvalidParameter, Problem
from service.generation import plan

router = APIRouter(prefix="/v1", tags=["openai"])

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = {name: digit for digit, word in enumerate(WORDS) for name in (word, str(digit))}
SIZES = (28, 512)
DESCRIBED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": openapi_schema.plain(Generations)}}},
    "responses": {"200": {"content": {images.EVENTS.media_type: {}}}},
}
"""What FastAPI cannot know of a route that reads its body itself."""
SAVED: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "jpeg": {"quality": 95}}
"""How images are written, by format; as near to lossless as it can be."""


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models, as that API lists them."""
    state: AppContext = request.app.state.service
    return {"object": "list", "data": [_described(model) for model in state.catalog.models.values()]}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    return _described(plan.find_model(request.app.state.service.engine.catalog, name))


@router.post("/images/generations", openapi_extra=DESCRIBED)
async def generations(request: Request) -> Response:
    """Draw the digit that the prompt names."""
    state: AppContext = request.app.state.service
    asked, files = await schemas.read(request, Generations)
    if files:
        raise InvalidParameter("image: only a prompt is taken here")
    size = measured(asked.size)
    words = {
        "model": asked.model, "digit": spoken(asked.prompt), "n": asked.n, "seed": asked.seed,
        "steps": asked.num_inference_steps, "guidance": asked.guidance_scale,
    }  # fmt: skip
    parameters = schemas.validate(schemas.Generate, words)
    found = plan.choose_model(state.catalog, state.settings, parameters)
    draw = plan.plan_generation(parameters, found, images.IMAGE_FORMATS[0], state.settings.max_images, state.new_seed)
    pencil = Pencil(size, asked.output_format)
    if asked.stream:
        watched = plan.with_previews(draw.request) if asked.partial_images else draw.request
        drawing = state.drawing(watched, found, request, seed=draw.seed)
        return Partial(drawing, pencil, asked.partial_images)
    result = (await state.draw(draw.request, found, request, seed=draw.seed)).result()
    # Larger pictures take longer to encode than the loop may stand still.
    count = len(result.images) * size[0] * size[1] // SIZES[0] ** 2
    content = await encoded(request, lambda: json.dumps(pencil.answer(result.images, draw.seed)).encode(), count)
    return Response(content, media_type="application/json")


def error(problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a problem, as that API tells of it."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    status = 400 if problem.status == 422 else problem.status
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    wrong = problem.extra.get("errors") or [{}]
    code = problem.body()["type"].rpartition(":")[2].replace("-", "_")
    return status, {
        "error": {"message": problem.detail, "type": kind, "param": wrong[0].get("parameter"), "code": code}
    }


def spoken(prompt: str) -> list[int]:
    """The digit that a prompt names, or none. Raises InvalidParameter where it names several."""
    named = {word for word in re.findall(r"[a-z]+|[0-9]+", prompt.lower()) if word in NAMES or word[0].isdigit()}
    digits = {NAMES.get(word) for word in named}
    if len(digits) > 1 or None in digits:
        raise InvalidParameter("prompt: name one digit, as a word or a numeral, or none")
    return [digit for digit in digits if digit is not None]


def measured(size: str) -> tuple[int, int]:
    """Width and height of `28x28`; that is what `auto` comes to. Raises InvalidParameter."""
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", "28x28" if size == "auto" else size)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    least, most = SIZES
    if not (least <= width <= most and least <= height <= most):
        raise InvalidParameter(f"size: WIDTHxHEIGHT, either {least} to {most}, or auto")
    return width, height


class Pencil:
    """Writes images as that API has them, `size` wide and high, every pixel as it is, in a format by its name.

    To a stream it is the packer.
    """

    def __init__(self, size: tuple[int, int], format_: str) -> None:
        self.size, self.format = size, format_
        self.said = {"created_at": int(time.time()), "size": f"{size[0]}x{size[1]}", "output_format": format_,
                     "quality": "auto", "background": "opaque"}  # fmt: skip

    def answer(self, drawn: Iterable[Images], seed: int) -> dict[str, Any]:
        """All of them in one body."""
        data = [{"b64_json": self.encode(image)} for image in drawn]
        return {**self.said, "created": self.said["created_at"], "data": data, "seed": seed}

    def encode(self, image: Images) -> str:
        """Base64 of a file."""
        buffer = io.BytesIO()
        enlarged = Image.fromarray(image).resize(self.size, Image.Resampling.NEAREST)
        enlarged.save(buffer, self.format, **SAVED[self.format])
        return base64.b64encode(buffer.getvalue()).decode()

    def event(self, kind: str, image: Images, **more: Any) -> bytes:
        """A server-sent event with an image."""
        name = f"image_generation.{kind}"
        return images.event(name, {"type": name, **self.said, "b64_json": self.encode(image), **more})

    def begin(self) -> bytes:
        return b""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        none = {"text_tokens": 0, "image_tokens": 0}
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": none}
        return self.event("completed", image, usage=usage)

    def end(self) -> bytes:
        return b""


class Partial(ImageStream):
    """Images as they are drawn, and of each so many before it is finished, as evenly as there are steps for it."""

    def __init__(self, drawing: AwaitedGeneration, pencil: Pencil, partial_images: int) -> None:
        super().__init__(drawing, pencil, images.EVENTS, [(b"cache-control", b"no-store")])
        self.pencil, self.wanted, self.shown = pencil, partial_images, 0

    def under_way(self, ticket: Ticket) -> bytes:
        gone = 1 - ticket.remaining_steps / (len(ticket.images) * ticket.request.steps_per_row)
        if self.shown == self.wanted or gone * (self.wanted + 1) < self.shown + 1:
            return b""
        looks = [(i, ticket.previews.pop(i, None)) for i in sorted(ticket.previews)]
        said = [self.pencil.event("partial_image", image, partial_image_index=self.shown)
                for _, image in looks if image is not None]  # fmt: skip
        self.shown += bool(said)
        return b"".join(said)

    def broken(self, problem: Problem) -> bytes:
        return images.event("error", {"type": "error", **error(problem)[1]["error"]})


def _described(model: Model) -> dict[str, Any]:
    created = int(datetime.fromisoformat(model.manifest.created).timestamp())
    return {"id": model.name, "object": "model", "created": created, "owned_by": "drawbridge"}
