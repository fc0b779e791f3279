"""/generate and /interpolate."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.api import openapi_schema, parsing, schemas
from service.api.context import AppContext, AwaitedGeneration, ClientDisconnected
from service.codecs import images, uploads
from service.codecs.images import Format, ImageBatch, StreamEncoder
from service.engine.request import Ticket
from service.errors import Problem
from service.generation import plan
from service.generation.plan import GenerationPlan
from service.telemetry import request_context
from service.telemetry.request_context import RequestContext

log = logging.getLogger(__name__)

router = APIRouter()

INLINE = 16
"""Images that are encoded on the event loop: that holds it up for less than a millisecond in every format, of which a
thread would save nothing to a lone caller and cost him its hop (`python -m benchmarks encoding`)."""

Headers = list[tuple[bytes, bytes]]

FOREVER = "max-age=31536000, immutable"
"""For what names the version of its model."""
CHECKED = "max-age=0, s-maxage=1, must-revalidate"
"""For what names a model whose weights may be replaced: kept, and asked about each time, by caches of many callers once
a second. `no-cache` would say the same of the former, and the latter would not keep it at all."""


def documented(
    schema: type[BaseModel], formats: Sequence[Format[Any]], *, body: bool = True, images: bool = False
) -> dict[str, Any]:
    """What the API's pages say of a route that reads its parameters itself, of its `body` and `images` in it too."""
    answers = {"200": {"description": "As asked.", "content": {format_.media_type: {} for format_ in formats}}}
    said = {"parameters": openapi_schema.queries(schema), "responses": answers}
    if body:
        said["requestBody"] = openapi_schema.body(schema, images=images)
    else:
        answers["304"] = {"description": "If-None-Match names it."}
    return {"tags": ["draw"], "response_class": Response, "openapi_extra": said}


async def encoded(request: Request, encode: Callable[[], bytes], count: int) -> bytes:
    """The bytes of `count` images, from a thread where they are many."""
    with request_context.of(request).time_encoding():
        return encode() if count <= INLINE else await asyncio.to_thread(encode)


@router.get("/generate", **documented(schemas.Generate, images.IMAGE_FORMATS, body=False))
@router.post("/generate", **documented(schemas.Generate, images.IMAGE_FORMATS))
async def generate(request: Request) -> Response:
    """Draw images: the same model, seed and first image are the same bytes, whenever, wherever, beside whomever."""
    asked = await parsing.understand(request)
    return await answer(request, asked.draw, asked.format, fixed=asked.fixed)


@router.get("/interpolate", **documented(schemas.Interpolate, images.ANIMATION_FORMATS, body=False))
@router.post("/interpolate", **documented(schemas.Interpolate, images.ANIMATION_FORMATS, images=True))
async def interpolate(request: Request) -> Response:
    """Draw the way from one image to another: two seeds, two digits at one seed, or two uploads (fields `image`)."""
    state: AppContext = request.app.state.service
    parameters, files = await schemas.read(request, schemas.Interpolate)
    model = plan.choose_model(state.catalog, state.settings, parameters, uploads=bool(files))
    format_ = images.negotiate(images.ANIMATION_FORMATS, parameters.format, request.headers.get("accept"))
    ends = await uploads.read(files, max_images=2, max_pixels=state.settings.max_pixels)
    draw = plan.plan_interpolation(parameters, model, format_, ends, state.new_seed)
    if ends:
        found = (await state.draw(plan.encode_endpoints(draw), model, request, seed=draw.seed)).result()
        draw = plan.with_endpoint_codes(draw, found.images)
    return await answer(request, draw, format_, fixed=bool(parameters.model and parameters.seed) and draw.reproducible)


async def answer(request: Request, draw: GenerationPlan, format_: Format[ImageBatch], *, fixed: bool) -> Response:
    """Draw, encode, and say how to get the same again. A GET whose words fix the draw never changes, and says so."""
    state, call = request.app.state.service, request_context.of(request)
    headers = described(draw, format_, call, state.scope, fixed=fixed)
    if (tag := dict(headers).get(b"etag")) and _matches(request.headers.getlist("if-none-match"), tag.decode()):
        return RawResponse(b"", headers, 304)
    if format_.stream_encoder is not None and not at_once(draw, format_):
        drawing = state.drawing(draw.request, draw.model, request, seed=draw.seed)
        packer = format_.stream_encoder(len(draw.request.samples), draw.metadata(call.root))
        return (EventStream if format_ is images.EVENTS else ImageStream)(drawing, packer, format_, headers)
    ticket = await state.draw(draw.request, draw.model, request, seed=draw.seed)
    content = await encoded(request, lambda: file(draw, format_, ticket, call), len(ticket.images))
    return RawResponse(content, headers + filled(content, format_, ticket))


def at_once(draw: GenerationPlan, format_: Format[ImageBatch]) -> bool:
    """Whether it is answered once all of it is drawn, and encoded where that is told."""
    return len(draw.request.samples) <= INLINE and format_ is not images.EVENTS


def described(
    draw: GenerationPlan, format_: Format[ImageBatch], call: RequestContext, scope: str, *, fixed: bool
) -> Headers:
    """What the headers of an answer say of the draw, wherever it stands: how to get it again, and for how long to keep
    it. `fixed` where the words that asked for it fix it; `scope` is the service's.
    """
    headers = [
        (b"x-model-digest", draw.model.digest.encode()),
        (b"vary", b"Accept"),
    ]
    if draw.reproducible:
        headers += (b"x-seed", b"%d" % draw.seed), (b"content-location", (call.root + draw.location).encode())
    if call.method == "GET" and fixed and format_ is not images.EVENTS:  # events tell of the time too
        whose = "public" if call.lease is None else "private"  # caches are no way around keys
        kept = f"{whose}, {FOREVER if draw.version_pinned else CHECKED}"
        headers += (b"etag", draw.etag(scope + call.root).encode()), (b"cache-control", kept.encode())
    else:
        headers.append((b"cache-control", b"no-store"))
    return headers


def file(draw: GenerationPlan, format_: Format[ImageBatch], ticket: Ticket, call: RequestContext) -> bytes:
    """All that was drawn. Raises the EngineError that it ended with."""
    result = ticket.result()
    return format_.encode(ImageBatch(result.images, result.labels, draw.metadata(call.root)))


def filled(content: bytes, format_: Format[ImageBatch], ticket: Ticket) -> Headers:
    """What the headers say besides once it is drawn."""
    return [
        (b"x-batch", b"%d" % ticket.max_batch_seen),
        (b"content-length", b"%d" % len(content)),
        (b"content-type", format_.content_type),
    ]


class RawResponse(Response):
    """A response whose headers are there as they are sent; Starlette's writes them out, and adds what is missing."""

    def __init__(self, content: bytes, headers: Headers, status: int = 200) -> None:
        self.status_code, self.body, self.raw_headers, self.background = status, content, headers, None


class ImageStream(RawResponse):
    """Images as they are drawn, in order; nothing is kept that has been sent.

    What goes wrong before the first image is answered as ever. After it there is no status left to tell: the body ends
    unfinished, which every client sees, and events say why.
    """

    def __init__(
        self, drawing: AwaitedGeneration, packer: StreamEncoder, format_: Format[ImageBatch], headers: Headers
    ) -> None:
        super().__init__(b"", [*headers, (b"content-type", format_.content_type)])
        self.drawing, self.packer = drawing, packer
        if format_ is images.EVENTS:
            self.headers["X-Accel-Buffering"] = "no"  # a proxy hands on what it has, as nginx is told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.drawing as ticket:
            await self.opened(ticket)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            ending: bytes | None
            try:
                await _part(send, self.packer.begin() + self.first(ticket))
                sent = 0
                while sent < len(ticket.images):
                    parts = list(islice(self._ready(ticket, sent), INLINE))
                    sent += len(parts)
                    said = self.under_way(ticket) + b"".join(parts)
                    if not said:
                        await self.drawing.more()
                        continue
                    await _part(send, said)
                    await asyncio.sleep(0)  # many may be ready, and others want the loop too
                ending = self.packer.end()
            except ClientDisconnected:
                return
            except Problem as problem:
                log.error("a streamed draw ended early: %s", problem.detail)
                ending = self.broken(problem)
            if ending is not None:
                await send({"type": "http.response.body", "body": ending})

    async def opened(self, ticket: Ticket) -> None:
        """Wait until there is something to answer, whatever may be wrong before."""
        await self.drawing.more()
        self.headers["X-Batch"] = str(ticket.max_batch_seen)

    def first(self, ticket: Ticket) -> bytes:
        """What is said before the first image."""
        return b""

    def under_way(self, ticket: Ticket) -> bytes:
        """What is said of images that are not drawn yet."""
        return b""

    def broken(self, problem: Problem) -> bytes | None:
        """How a body ends that cannot be finished; None where it does not."""
        return None

    def _ready(self, ticket: Ticket, first: int) -> Iterator[bytes]:
        """The images from `first` on that are drawn, up to one that is not."""
        for i in range(first, len(ticket.images)):
            image = ticket.images[i]
            if image is None:
                return
            ticket.images[i] = None
            with self.drawing.call.time_encoding():
                part = self.packer.add(image, int(ticket.labels[i]), None)
            yield part


class EventStream(ImageStream):
    """The same as server-sent events, which begin at once and say how it goes.

    `progress`: `ahead`, images accepted before; `gone` of `links`; `seconds` that it should take from here on.
    `preview`: where image `index` stands. Who reads slowly misses previews, and nothing else.
    """

    async def opened(self, ticket: Ticket) -> None:
        self.links = self.seen = ticket.remaining_steps
        self.begun = self.drawing.loop.time()

    def first(self, ticket: Ticket) -> bytes:
        return self._progress(ticket, self.drawing.engine.seconds_behind())

    def under_way(self, ticket: Ticket) -> bytes:
        if not ticket.request.previews or ticket.remaining_steps == self.seen:
            return b""
        self.seen = ticket.remaining_steps
        pace = (self.drawing.loop.time() - self.begun) / (self.links - self.seen)
        # An engine on another thread goes on meanwhile.
        looks = [(i, ticket.previews.pop(i, None)) for i in sorted(ticket.previews)]
        shown = (images.preview(i, image) for i, image in looks if image is not None)
        return self._progress(ticket, pace * self.seen) + b"".join(shown)

    def broken(self, problem: Problem) -> bytes:
        return images.event("error", problem.body())

    def _progress(self, ticket: Ticket, seconds: float) -> bytes:
        gone = self.links - ticket.remaining_steps
        said = {"ahead": ticket.images_ahead, "gone": gone, "links": self.links, "seconds": round(seconds, 3)}
        return images.event("progress", said)


async def _part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _matches(fields: Sequence[str], etag: str) -> bool:
    """Whether an If-None-Match names the tag (RFC 9110, 13.1.2: compared weakly)."""
    tags = {tag.strip().removeprefix("W/") for field in fields for tag in field.split(",")}
    return "*" in tags or etag in tags
