"""/nearest: the training images nearest to an uploaded image."""

import base64
import json
from typing import Any

from fastapi import APIRouter, Request, Response
from torch import Tensor

from models.nearest import Card
from models.pixels import to_pixels, to_uint8, to_unit
from service.api import parsing
from service.api.awaiting import on_thread
from service.api.context import AppContext
from service.api.generate import documented
from service.api.uploading import read_images
from service.codecs import formats
from service.codecs.formats import Format
from service.codecs.png import png
from service.engine.catalog import Model
from service.errors import InvalidParameter, NoIndex, UnknownModel
from service.generation.nearest import Found, search
from service.generation.parameters import Nearest
from service.generation.selection import find_model
from service.telemetry import request_context

router = APIRouter()

FORMATS: tuple[Format[dict[str, Any]], ...] = (
    Format("json", "application/json", lambda fields: json.dumps(fields).encode()),
)


@router.post("/nearest", **documented(Nearest, FORMATS, uploads={"image": False}, problems=(UnknownModel, NoIndex)))
async def nearest(request: Request) -> Response:
    """Find the training images nearest to an image, and whether it is a copy of one.

    It needs an index of the model's training images, which `drawbridge nearest` writes (`nearest` in GET /models).
    Distances are Euclidean distances of pixels 0 to 255; sides above 32 pixels are reduced by averaging before.
    """
    service: AppContext = request.app.state.service
    parameters, files = await parsing.read(request, Nearest)
    model = find_model(service.catalog, parameters.model)
    format_ = formats.negotiate(FORMATS, None, request.headers.get("accept"))
    index = service.nearest.find(model)
    images = await read_images(files, model, parameters, service.settings, max_images=1)
    if not images:
        raise InvalidParameter("image: send an image, as an upload called `image`")
    context = request_context.of(request)
    context.model, context.digest = model.name, model.digest
    image = to_uint8(images[0])
    with service.nearest.place():
        found = await on_thread(
            request, service.nearest.thread, lambda cancelled: search(index, image, parameters.n, cancelled)
        )
    content = format_.encode(_describe(model, index.card, found))
    return Response(content, media_type=format_.media_type, headers={"Vary": "Accept", "Cache-Control": "no-store"})


def _describe(model: Model, card: Card, found: Found) -> dict[str, Any]:
    """The response, as JSON values."""
    return {
        "model": model.name,
        "digest": model.digest,
        "dataset": {
            "name": card.name, "digest": card.digest, "images": card.images, "attribution": card.attribution,
        },
        "copied": found.copied,
        "nearer_than": found.nearer_than,
        "sentence": found.sentence,
        "neighbours": [
            {
                "index": one.number,
                "label": one.label,
                "class": card.classes[one.label] if 0 <= one.label < len(card.classes) else None,
                "distance": one.distance,
                "png": _png(one.image),
            }
            for one in found.neighbours
        ],
    }  # fmt: skip


def _png(image: Tensor) -> str:
    """An image [C, H, W] uint8 as a PNG in base64."""
    return base64.b64encode(png(to_pixels(to_unit(image[None]))[0].numpy())).decode()
