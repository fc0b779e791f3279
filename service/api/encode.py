"""/encode, /decode and /reconstruct."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from models.pixels import to_uint8
from service.api import schemas
from service.api.context import AppContext
from service.api.generate import documented, encoded
from service.codecs import images, uploads
from service.codecs.images import Codes, Format, ImageBatch
from service.engine.catalog import Model
from service.engine.request import Result
from service.errors import InvalidParameter
from service.generation import plan

router = APIRouter()

T = TypeVar("T")

HEADER_ERRORS = 64
"""Errors that fit into a header; the others are in the body."""


@router.post("/encode", **documented(schemas.Encode, images.CODE_FORMATS, images=True))
async def encode(request: Request) -> Response:
    """The codes of uploaded images (form fields `image`: PNG, JPEG, or npz with `images` uint8 [n, H, W])."""
    asked = await _read(request, images.CODE_FORMATS)
    codes = (await asked.result(request, codes=True)).images
    about = {**asked.about, "shape": codes.shape[1:]}
    content = await encoded(request, lambda: asked.format.encode(Codes(codes, about)), len(codes))
    return Response(content, media_type=asked.format.media_type, headers=asked.headers)


@router.post("/reconstruct", **documented(schemas.Encode, images.IMAGE_FORMATS, images=True))
async def reconstruct(request: Request) -> Response:
    """Uploaded images (as for /encode) through the model's code and back.

    `X-Error`, and `errors` in npz and JSON, have the mean squared difference of each one's pixels in [0, 1].
    """
    asked = await _read(request, images.IMAGE_FORMATS)
    result = await asked.result(request, codes=False)
    sent = to_uint8(torch.cat(asked.pictures)).numpy() / 255
    errors = np.square(result.images / 255 - sent).mean((1, 2))
    drawn = ImageBatch(result.images, result.labels, asked.about, errors)
    content = await encoded(request, lambda: asked.format.encode(drawn), len(errors))
    listed = ", ".join(f"{error:.6f}" for error in errors[:HEADER_ERRORS])
    return Response(content, media_type=asked.format.media_type, headers={**asked.headers, "X-Error": listed})


@router.post("/decode", **documented(schemas.Decode, images.IMAGE_FORMATS))
async def decode(request: Request) -> Response:
    """What codes, as /encode gives them or anywhere between, come to."""
    state: AppContext = request.app.state.service
    parameters, files = await schemas.read(request, schemas.Decode)
    if files:
        raise InvalidParameter("image: /decode takes codes; /reconstruct takes images")
    model = plan.find_model(state.catalog, parameters.model)
    format_ = images.negotiate(images.IMAGE_FORMATS, parameters.format, request.headers.get("accept"))
    asked = plan.plan_decoding(parameters, model, state.settings.max_images)
    result = (await state.draw(asked, model, request)).result()
    drawn = ImageBatch(result.images, result.labels, {"model": model.name, "digest": model.digest})
    content = await encoded(request, lambda: format_.encode(drawn), len(result.images))
    headers = {"X-Model-Digest": model.digest, "Vary": "Accept", "Cache-Control": "no-store"}
    return Response(content, media_type=format_.media_type, headers=headers)


@dataclass(frozen=True)
class _Asked(Generic[T]):
    """What a request asks of an encoder."""

    state: AppContext
    parameters: schemas.Encode
    model: Model
    format: Format[T]
    pictures: list[Tensor]
    """[1, 28, 28] each."""

    async def result(self, request: Request, *, codes: bool) -> Result:
        """Codes, or images, from the engine."""
        asked = plan.plan_encoding(self.parameters, self.model, self.pictures, codes=codes)
        return (await self.state.draw(asked, self.model, request)).result()

    @property
    def about(self) -> dict[str, Any]:
        return {"model": self.model.name, "digest": self.model.digest}

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Model-Digest": self.model.digest, "Vary": "Accept", "Cache-Control": "no-store"}


async def _read(request: Request, formats: Sequence[Format[T]]) -> _Asked[T]:
    state: AppContext = request.app.state.service
    parameters, files = await schemas.read(request, schemas.Encode, state.settings.max_uploads)
    model = plan.find_model(state.catalog, parameters.model)
    format_ = images.negotiate(formats, parameters.format, request.headers.get("accept"))
    limits = {"max_images": state.settings.max_images, "max_pixels": state.settings.max_pixels}
    pictures = await uploads.read(files, **limits)
    return _Asked(state, parameters, model, format_, pictures)
