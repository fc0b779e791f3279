"""What requests to /generate ask for. Most differ from others in their seed alone, so the rest is understood once."""

import re
from typing import NamedTuple

from fastapi import Request
from starlette.types import Scope

from service.api import schemas
from service.api.context import State
from service.codecs import images
from service.codecs.images import Drawn, Format
from service.errors import InvalidParameter
from service.generation import plan
from service.generation.plan import Draw

SEED = re.compile(rb"(?:^|&)seed=([0-9]{1,18})(?=&|$)")
"""A seed that needs no checking."""
MATTERS = (b"accept", b"x-timeout")
"""Headers that say something of a draw."""
MOST, FEW, SHORT = 1024, 16, 1024
"""Queries that are remembered; images, and bytes, of one that is."""


class Asked(NamedTuple):
    """A draw, and how it is to be answered."""

    draw: Draw
    format: Format[Drawn]
    fixed: bool
    """Whether its words, as they came, fix the draw: they name a model and a seed."""


async def understand(request: Request) -> Asked:
    """What `request` asks for, at a new seed where it names none. Raises the Problem that is wrong with it."""
    state: State = request.app.state.service
    if (recalled := known(state, request.scope)) is not None:
        return recalled
    parameters, files = await schemas.read(request, schemas.Generate)
    if files:
        raise InvalidParameter("image: /generate takes none; /interpolate does")
    model = plan.choose(state.catalog, state.settings, parameters)
    format_ = images.choose(images.STILLS, parameters.format, request.headers.get("accept"))
    draw = plan.generate(parameters, model, format_, state.settings.max_images, state.new_seed)
    named = parameters.model is not None
    key, _ = _split(request.scope)
    if key is not None and parameters.n <= FEW:
        if len(state.understood) >= MOST:
            state.understood.clear()
        state.understood[key] = Asked(draw, format_, named)
    return Asked(draw, format_, named and parameters.seed is not None)


def known(state: State, scope: Scope) -> Asked | None:
    """What a request asks for that differs from one before in its seed alone; None where it may differ in more."""
    key, seed = _split(scope)
    before: Asked | None = state.understood.get(key)
    if before is None:
        return None
    draw = before.draw.at(state.new_seed() if seed is None else seed)
    return Asked(draw, before.format, before.fixed and seed is not None)


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
