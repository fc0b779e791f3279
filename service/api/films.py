"""Films: how a model's samples changed during training."""

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from models import film
from models.directories import FILM, SPRITE
from models.film import Film, FilmError
from service import errors
from service.api.context import AppContext
from service.api.responses import RawResponse, cache_policy, is_not_modified
from service.engine.catalog import Model
from service.generation.selection import find_model
from service.telemetry import request_context

router = APIRouter()

KEPT_FILMS = 64
"""Films in memory, of a few hundred KB at most."""
WEBP = {"image/webp": {"schema": {"type": "string", "format": "binary"}}}
NO_FILM: dict[int | str, dict[str, Any]] = {
    404: {
        "description": "No such model, or it has no film.",
        "content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


@router.get("/models/{name}/film", tags=["models"], responses=NO_FILM)
async def describe_film(request: Request, name: str) -> Response:
    """How a model's samples changed during training: what each frame of the image `film.webp` shows.

    `frames` lists the `updates` and `images` of training before each frame. The image has them in rows of `across`,
    each `width` x `height` pixels, with image 0, 1, ... of seed 0 in `rows` and `columns`. The last frame shows the
    weights themselves. The others are of the run that made them if `same_run` is true, otherwise of another run by the
    same recipe. `image` is the SHA-256 of the image.
    """
    found, model = await _find(request, name)
    return JSONResponse(found.describe(model.digest), headers={"Cache-Control": "no-cache"})


@router.get(
    "/models/{name}/film.webp",
    tags=["models"],
    response_class=Response,
    responses={200: {"description": "The frames.", "content": WEBP}, **NO_FILM},
)
async def film_image(
    request: Request,
    name: str,
    digest: Annotated[str | None, Query(description="SHA-256 of this image; the response may then be kept.")] = None,
) -> Response:
    """The frames of a model's film, in one image that `/models/{name}/film` describes."""
    found, _ = await _find(request, name)
    if digest not in (None, found.digest):
        raise errors.NotFound(
            f"the film of {name} has the digest {found.digest}, not {digest}; GET /models/{name}/film"
        )
    headers = [
        (b"etag", f'"{found.digest}"'.encode()),
        (b"cache-control", cache_policy(request_context.of(request), immutable=digest is not None).encode()),
    ]
    if is_not_modified(request.scope, headers):
        return RawResponse(b"", headers, 304)
    content = [(b"content-type", b"image/webp"), (b"content-length", b"%d" % len(found.image))]
    return RawResponse(found.image, headers + content)


def find_film(weights: Path, model: Model) -> Film:
    """The film of `model` in the directory of all weights. Raises FilmError, also if it is damaged."""
    directory = weights / model.name
    return _read(directory, model.digest, _state(directory / FILM), _state(directory / SPRITE))


def film_digest(weights: Path, model: Model) -> str | None:
    """The digest of the image of a model's film; None if it has none that can be shown."""
    try:
        return find_film(weights, model).digest
    except FilmError:
        return None


async def _find(request: Request, name: str) -> tuple[Film, Model]:
    service: AppContext = request.app.state.service
    model = find_model(service.catalog, name)
    try:
        return await asyncio.to_thread(find_film, service.settings.weights, model), model
    except FilmError as error:
        raise errors.NotFound(str(error)) from None


@lru_cache(KEPT_FILMS)
def _read(directory: Path, weights: str, *_states: tuple[int, ...]) -> Film:
    """Read a film once for each state of its files."""
    return film.read(directory, weights)


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does; () if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
