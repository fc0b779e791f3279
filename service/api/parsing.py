"""What requests to /generate ask for. Most differ from others in their seed alone, so the rest is understood once."""

import re
from typing import NamedTuple

from fastapi import Request
from starlette.types import Scope

from service.api import schemas
from service.api.context import AppContext
from service.codecs import images
from service.codecs.images import Format, ImageBatch
from service.errors import InvalidParameter
from service.generation import plan
from service.generation.plan import GenerationPlan

SEED = re.compile(rb"(?:^|&)seed=([0-9]{1,18})(?=&|$)")
"""A seed that needs no checking."""
MATTERS = (b"accept", b"x-timeout")
"""Headers that say something of a draw."""
MOST, FEW, SHORT = 1024, 16, 1024
"""Queries that are remembered; images, and bytes, of one that is."""


class ParsedRequest(NamedTuple):
    """A draw, and how it is to be answered."""

    draw: GenerationPlan
    format: Format[ImageBatch]
    fixed: bool
    """Whether its words, as they came, fix the draw: they name a model and a seed."""


async def understand(request: Request) -> ParsedRequest:
    """What `request` asks for, at a new seed where it names none. Raises the Problem that is wrong with it."""
    state: AppContext = request.app.state.service
    if (recalled := known(state, request.scope)) is not None:
        return recalled
    parameters, files = await schemas.read(request, schemas.Generate)
    if files:
        raise InvalidParameter("image: /generate takes none; /interpolate does")
    model = plan.choose_model(state.catalog, state.settings, parameters)
    format_ = images.negotiate(images.IMAGE_FORMATS, parameters.format, request.headers.get("accept"))
    draw = plan.plan_generation(parameters, model, format_, state.settings.max_images, state.new_seed)
    named = parameters.model is not None
    key, _ = _split(request.scope)
    if key is not None and parameters.n <= FEW:
        if len(state.parse_cache) >= MOST:
            state.parse_cache.clear()
        state.parse_cache[key] = ParsedRequest(draw, format_, named)
    return ParsedRequest(draw, format_, named and parameters.seed is not None)


def known(state: AppContext, scope: Scope) -> ParsedRequest | None:
    """What a request asks for that differs from one before in its seed alone; None where it may differ in more."""
    key, seed = _split(scope)
    before: ParsedRequest | None = state.parse_cache.get(key)
    if before is None:
        return None
    draw = before.draw.with_seed(state.new_seed() if seed is None else seed)
    return ParsedRequest(draw, before.format, before.fixed and seed is not None)


def _split(scope: Scope) -> tuple[tuple[bytes, ...] | None, int | None]:
    """All that a request says but its seed, None where a query is not all; and the seed, if there is one."""
    said: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"content-type":
            return None, None
        if name in MATTERS:
            said += [name, value]
    query: bytes = scope["query_string"]
    if (found := SEED.search(query)) is not None:
        query = query[: found.start()] + query[found.end() :]
    key = (query, *said)
    if b"seed" in query or b"%" in query or sum(map(len, key)) > SHORT:  # a seed twice, or written in some other way
        return None, None
    return key, None if found is None else int(found[1])
