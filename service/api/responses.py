"""Responses: their headers, whole files, and images streamed while the engine goes on."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api.awaiting import AwaitedGeneration
from service.api.context import AppContext
from service.codecs import streams
from service.codecs.formats import EVENTS, Format, ImageBatch
from service.codecs.recipe import Recipe
from service.codecs.streams import Contents, StreamEncoder
from service.engine.catalog import Model
from service.engine.request import Result, Ticket
from service.errors import Problem
from service.generation.labels import NONE
from service.generation.plan import GenerationPlan
from service.telemetry import request_context
from service.telemetry.request_context import RequestContext

log = logging.getLogger(__name__)

MAX_BUFFERED_IMAGES = 16
"""Images of the largest response that is sent at once; a larger one is streamed if its format allows that."""
MAX_INLINE_IMAGES = 16
"""Small images that are encoded on the event loop. That takes less than a millisecond in every format. A thread would
save nothing for a single client, and the switch to it costs time (`python -m benchmarks encoding`)."""
SMALL_IMAGE = 2048
"""The largest number of bytes in a small image; those of MNIST have 784."""
MAX_PART_IMAGES = 16
"""Images per part of a streamed response; fewer if they are not small."""

IMMUTABLE = "max-age=31536000, immutable"
"""For URLs that name their model's version and every option that its manifest has a default for."""
REVALIDATE = "max-age=0, s-maxage=1, must-revalidate"
"""For URLs that name a model and a seed, whose weights or defaults may be replaced. Clients keep the response and
revalidate it each time, shared caches once a second. `no-cache` would tell clients the same, but shared caches would
not store it."""

Headers = list[tuple[bytes, bytes]]


class RawResponse(Response):
    """A response whose headers are sent as they are; Starlette would encode and complete them."""

    def __init__(self, content: bytes, headers: Headers, status: int = 200) -> None:
        self.status_code, self.body, self.raw_headers, self.background = status, content, headers, None


async def respond(
    request: Request, plan: GenerationPlan, format_: Format[ImageBatch], *, deterministic: bool
) -> Response:
    """Run a plan and respond in `format_`. Raises the Problem that it ended with."""
    service: AppContext = request.app.state.service
    context = request_context.of(request)
    engine_request, model = await service.load(plan.request, plan.model, request)
    plan = plan._replace(request=engine_request, model=model)
    headers = reproduce_headers(plan, format_, context, service.scope, deterministic=deterministic)
    if is_not_modified(request.scope, headers):
        return RawResponse(b"", headers, 304)
    if context.method == "HEAD":  # nothing is generated for it, so nothing is known of the body but its type
        return RawResponse(b"", [*headers, (b"content-type", format_.content_type)])
    if is_streamed(plan, format_):
        assert format_.stream_encoder is not None
        pending = service.pending(plan.request, plan.model, request, seed=plan.seed)
        metadata = plan.metadata(context.root)
        contents = Contents(
            len(plan.request.samples), model.image_shape, model.manifest.classes, metadata, recipe_of(plan)
        )
        encoder = format_.stream_encoder(contents)
        stream = EventStream if format_ is EVENTS else ImageStream
        return stream(pending, encoder, format_, headers, in_small_images(1, model.image_shape))
    ticket = await service.generate(plan.request, plan.model, request, seed=plan.seed)
    cost = in_small_images(len(ticket.images), plan.model.image_shape)
    content = await encode(request, lambda: encode_ticket(plan, format_, ticket, context), cost)
    return RawResponse(content, headers + content_headers(content, format_, ticket))


async def encode(request: Request, encoder: Callable[[], bytes], count: int) -> bytes:
    """Call `encoder` for `count` small images, on a thread if they are many."""
    with request_context.of(request).time_encoding():
        return encoder() if count <= MAX_INLINE_IMAGES else await asyncio.to_thread(encoder)


def in_small_images(count: int, shape: tuple[int, ...]) -> int:
    """The number of small images that have as many bytes as `count` of `shape`."""
    return count * -(-math.prod(shape) // SMALL_IMAGE)


def is_streamed(plan: GenerationPlan, format_: Format[ImageBatch]) -> bool:
    """Whether the response is sent in parts."""
    return format_ is EVENTS or (format_.stream_encoder is not None and len(plan.request.samples) > MAX_BUFFERED_IMAGES)


def reproduce_headers(
    plan: GenerationPlan, format_: Format[ImageBatch], context: RequestContext, scope: str, *, deterministic: bool
) -> Headers:
    """Headers that say how to reproduce the images and how long to cache them. `scope` is the service's.

    Only a deterministic GET may be cached.
    """
    headers = [
        (b"x-model-digest", plan.model.digest.encode()),
        (b"vary", b"Accept"),
        (b"x-seed", b"%d" % plan.seed),
    ]
    if plan.reproducible:
        headers.append((b"content-location", (context.root + plan.location).encode()))
    if context.method in ("GET", "HEAD") and deterministic and format_ is not EVENTS:  # events also tell the time
        policy = cache_policy(context, immutable=plan.immutable)
        etag = plan.etag(f"{scope} {format_.name} {format_.revision}{context.root}")
        headers += (b"etag", etag.encode()), (b"cache-control", policy.encode())
    else:
        headers.append((b"cache-control", b"no-store"))
    return headers


def cache_control(request: Request, plan: GenerationPlan, *, deterministic: bool) -> str:
    """The Cache-Control header of a response to GET."""
    return cache_policy(request_context.of(request), immutable=plan.immutable) if deterministic else "no-store"


def cache_policy(context: RequestContext, *, immutable: bool) -> str:
    """The Cache-Control header of a response that may be kept, for ever if its URL stands for these bytes alone."""
    visibility = "public" if context.lease is None else "private"  # a shared cache must not bypass keys
    return f"{visibility}, {IMMUTABLE if immutable else REVALIDATE}"


def is_not_modified(scope: Scope, headers: Headers) -> bool:
    """Whether an If-None-Match header matches the ETag (RFC 9110, 13.1.2, with weak comparison)."""
    fields = [value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"]
    if not fields or (etag := dict(headers).get(b"etag")) is None:
        return False
    tags = {tag.strip().removeprefix("W/") for field in fields for tag in field.split(",")}
    return "*" in tags or etag.decode() in tags


def encode_ticket(plan: GenerationPlan, format_: Format[ImageBatch], ticket: Ticket, context: RequestContext) -> bytes:
    """The file of a finished request. Raises the EngineError that it ended with."""
    batch = image_batch(plan.model, ticket.result(), plan.metadata(context.root))
    return format_.encode(batch._replace(recipe=recipe_of(plan)))


def recipe_of(plan: GenerationPlan) -> Recipe | None:
    """What the PNGs of a plan say about how they were made; None if no request to /generate makes them."""
    if not plan.reproducible or plan.recipe is None:
        return None
    model = {"model": plan.model.key, "digest": plan.model.digest, "seed": plan.seed}
    options, labels = plan.recipe
    no_label = NONE if plan.model.classes else None
    return Recipe({**model, **options}, plan.request.samples[0].start.index, labels, no_label)


def image_batch(
    model: Model, result: Result, metadata: dict[str, Any], errors: NDArray[np.float64] | None = None
) -> ImageBatch:
    """The images of a finished request, with what files say about them."""
    return ImageBatch(result.images, result.labels, metadata, errors, model.manifest.classes)


def content_headers(content: bytes, format_: Format[ImageBatch], ticket: Ticket) -> Headers:
    """Headers that are known once the file exists."""
    return [
        (b"x-batch", b"%d" % ticket.max_batch_seen),
        (b"content-length", b"%d" % len(content)),
        (b"content-type", format_.content_type),
    ]


class ImageStream(RawResponse):
    """Images in order, each sent as soon as it and those before it are finished; sent images are not kept.

    A problem before the first image gets a normal error response. After that the status is already sent: the body ends
    incomplete, which every client detects, and event streams send an `error` event.
    """

    def __init__(
        self,
        pending: AwaitedGeneration,
        encoder: StreamEncoder,
        format_: Format[ImageBatch],
        headers: Headers,
        image_size: int = 1,
    ) -> None:
        """`image_size` is the size of one image in small images."""
        super().__init__(b"", [*headers, (b"content-type", format_.content_type)])
        self.pending, self.encoder = pending, encoder
        self.inline = image_size <= MAX_INLINE_IMAGES
        self.part_images = max(1, MAX_PART_IMAGES // image_size)
        if format_ is EVENTS:
            self.headers["X-Accel-Buffering"] = "no"  # nginx then passes each event on at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self.pending.context
        async with self.pending as ticket:
            await self.wait_for_first(ticket)
            self.pending.watch_connection()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            end: bytes | None
            try:
                await _send_part(send, self.encoder.begin() + self.first_events(ticket))
                sent = 0
                while sent < len(ticket.images):
                    if self.inline:
                        data, count = self._next_part(ticket, sent)
                    else:
                        data, count = await asyncio.to_thread(self._next_part, ticket, sent)
                    sent += count
                    if not data:
                        await self.pending.updated()
                        continue
                    await _send_part(send, data)
                    if context.lease is not None:
                        context.lease.undelivered -= count
                    await asyncio.sleep(0)  # let other requests run between the parts
                    self.pending.check_connection()
                end = self.encoder.end()
            except ClientDisconnect:
                context.client_disconnected()
                return
            except Problem as problem:
                log.error("a streamed response ended early: %s", problem.detail)
                context.failed(problem)
                end = self.error_event(problem)
            if end is not None:
                await send({"type": "http.response.body", "body": end})

    async def wait_for_first(self, ticket: Ticket) -> None:
        """Wait until there is something to send. Problems until then are raised."""
        await self.pending.updated()
        self.headers["X-Batch"] = str(ticket.max_batch_seen)

    def first_events(self, ticket: Ticket) -> bytes:
        """Bytes before the first image."""
        return b""

    def progress_events(self, ticket: Ticket) -> bytes:
        """Bytes about images that are not finished."""
        return b""

    def error_event(self, problem: Problem) -> bytes | None:
        """The end of a body that cannot be completed; None leaves it incomplete."""
        return None

    def _next_part(self, ticket: Ticket, sent: int) -> tuple[bytes, int]:
        """What there is to send after the first `sent` images, and the number of images in it."""
        images = list(islice(self._finished_images(ticket, sent), self.part_images))
        return self.progress_events(ticket) + b"".join(images), len(images)

    def _finished_images(self, ticket: Ticket, first: int) -> Iterator[bytes]:
        """Encode the finished images from `first` on, up to one that is not finished."""
        for i in range(first, len(ticket.images)):
            image = ticket.images[i]
            if image is None:
                return
            ticket.images[i] = None
            with self.pending.context.time_encoding():
                part = self.encoder.add(image, int(ticket.labels[i]), None)
            yield part


class EventStream(ImageStream):
    """Server-sent events, which start at once and report progress.

    `progress`: `ahead`, images accepted earlier and not finished; `gone` of `links`, device steps done and in total;
    `seconds`, the expected time to the end. `preview`: image `index` in its current state, and with `guesses` as the
    model predicts it. A slow reader misses previews and nothing else.
    """

    async def wait_for_first(self, ticket: Ticket) -> None:
        self.total_steps = self.seen_steps = ticket.remaining_steps
        await self.pending.accepted()
        self.started_at = self.pending.loop.time()

    def first_events(self, ticket: Ticket) -> bytes:
        return self._progress(ticket, self.pending.engine.seconds_behind())

    def progress_events(self, ticket: Ticket) -> bytes:
        if not ticket.request.previews or ticket.remaining_steps == self.seen_steps:
            return b""
        self.seen_steps = ticket.remaining_steps
        seconds_per_step = (self.pending.loop.time() - self.started_at) / (self.total_steps - self.seen_steps)
        # An engine on another thread may add previews meanwhile.
        previews = [(i, ticket.previews.pop(i, None)) for i in sorted(ticket.previews)]
        events = (streams.preview(i, image, ticket.guesses.pop(i, None)) for i, image in previews if image is not None)
        return self._progress(ticket, seconds_per_step * self.seen_steps) + b"".join(events)

    def error_event(self, problem: Problem) -> bytes:
        return streams.event("error", problem.body())

    def _progress(self, ticket: Ticket, seconds: float) -> bytes:
        done = self.total_steps - ticket.remaining_steps
        fields = {"ahead": ticket.images_ahead, "gone": done, "links": self.total_steps, "seconds": round(seconds, 3)}
        return streams.event("progress", fields)


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
