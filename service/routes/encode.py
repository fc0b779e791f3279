"""/encode and /reconstruct."""

import numpy as np
import torch
from fastapi import APIRouter, Request, Response

from models.pixels import to_uint8
from service import draws, images, schemas, uploads
from service.images import Codes, Drawn
from service.routes.draw import documented, encoded
from service.state import State

router = APIRouter()


@router.post("/encode", **documented(schemas.Encode, images.CODES))
async def encode(request: Request) -> Response:
    """The codes of uploaded images (form fields `image`: PNG, JPEG, or npz with `images` uint8 [n, H, W])."""
    state: State = request.app.state.service
    parameters, files = await schemas.read(request, schemas.Encode, state.settings.max_uploads)
    model = draws.find(state.catalog, parameters.model)
    format_ = images.choose(images.CODES, parameters.format, request.headers.get("accept"))
    pictures = [image for file in files for image in uploads.read(file, state.settings.max_pixels)]
    ticket = await state.draw(
        draws.encode(parameters, model, pictures, state.settings.max_images, codes=True), request.receive
    )
    states = ticket.future.result().images
    about = {"model": model.name, "digest": model.manifest.digest, "shape": list(states.shape[1:])}
    headers = {"X-Model-Digest": model.manifest.digest, "Vary": "Accept", "Cache-Control": "no-store"}
    content = await encoded(lambda: format_.encode(Codes(states, about)), len(states))
    return Response(content, media_type=format_.media_type, headers=headers)


@router.post("/reconstruct", **documented(schemas.Encode, images.STILLS))
async def reconstruct(request: Request) -> Response:
    """Uploaded images (as for /encode) through the model's code and back.

    `X-Error`, and `errors` in npz and JSON, have the mean squared difference of each one's pixels in [0, 1].
    """
    state: State = request.app.state.service
    parameters, files = await schemas.read(request, schemas.Encode, state.settings.max_uploads)
    model = draws.find(state.catalog, parameters.model)
    format_ = images.choose(images.STILLS, parameters.format, request.headers.get("accept"))
    pictures = [image for file in files for image in uploads.read(file, state.settings.max_pixels)]
    ticket = await state.draw(
        draws.encode(parameters, model, pictures, state.settings.max_images, codes=False), request.receive
    )
    result = ticket.future.result()
    sent = to_uint8(torch.cat(pictures)).numpy() / 255
    errors = np.square(result.images / 255 - sent).mean((1, 2))
    drawn = Drawn(result.images, result.labels, {"model": model.name, "digest": model.manifest.digest}, errors)
    headers = {
        "X-Model-Digest": model.manifest.digest,
        "X-Error": ", ".join(f"{error:.6f}" for error in errors[:HEADER_ERRORS]),
        "Vary": "Accept",
        "Cache-Control": "no-store",
    }
    content = await encoded(lambda: format_.encode(drawn), len(result.images))
    return Response(content, media_type=format_.media_type, headers=headers)


HEADER_ERRORS = 64
"""Errors that fit into a header; the others are in the body."""
