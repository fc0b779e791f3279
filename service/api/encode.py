"""/encode, /decode and /reconstruct."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from models.pixels import to_pixels
from service.api import parsing, responses
from service.api.context import AppContext
from service.api.generate import IMAGES, documented
from service.api.uploading import read_images
from service.codecs import formats
from service.codecs.formats import CODE_FORMATS, IMAGE_FORMATS, Codes, Format
from service.engine.catalog import Model
from service.engine.request import Result
from service.errors import InvalidParameter
from service.generation.codes import plan_decoding, plan_encoding
from service.generation.parameters import Decode, Encode
from service.generation.selection import find_model

router = APIRouter()

T = TypeVar("T")

MAX_HEADER_ERRORS = 64
"""Errors that the X-Error header lists; the body has all of them."""


@router.post("/encode", **documented(Encode, CODE_FORMATS, uploads=IMAGES))
async def encode(request: Request) -> Response:
    """Encode uploads into latent codes.

    Uploads are form fields `image`: PNG, JPEG, WebP, GIF, BMP, TIFF, or npz with `images` uint8 [n, H, W] or
    [n, H, W, 3]. They are scaled to the model's shape, and those for models of digits are normalized as MNIST was made.
    """
    job = await _read(request, CODE_FORMATS)
    codes = (await job.run(request, codes_only=True)).images
    metadata = {**job.metadata, "shape": codes.shape[1:]}
    cost = responses.in_small_images(len(codes), codes.shape[1:])
    content = await responses.encode(request, lambda: job.format.encode(Codes(codes, metadata)), cost)
    return Response(content, media_type=job.format.media_type, headers=_headers(job.model))


@router.post("/reconstruct", **documented(Encode, IMAGE_FORMATS, uploads=IMAGES))
async def reconstruct(request: Request) -> Response:
    """Encode uploads (as for /encode) and decode them again.

    `X-Error`, and `errors` in npz and JSON, hold the mean squared difference of each image's pixels in [0, 1].
    """
    job = await _read(request, IMAGE_FORMATS)
    result = await job.run(request, codes_only=False)
    originals = to_pixels(torch.stack(job.images)).numpy() / 255
    errors = np.square(result.images / 255 - originals).mean(tuple(range(1, originals.ndim)))
    batch = responses.image_batch(job.model, result, job.metadata, errors)
    cost = responses.in_small_images(len(errors), job.model.image_shape)
    content = await responses.encode(request, lambda: job.format.encode(batch), cost)
    listed = ", ".join(f"{error:.6f}" for error in errors[:MAX_HEADER_ERRORS])
    return Response(content, media_type=job.format.media_type, headers={**_headers(job.model), "X-Error": listed})


@router.post("/decode", **documented(Decode, IMAGE_FORMATS))
async def decode(request: Request) -> Response:
    """Decode latent codes, such as those of /encode or points between them."""
    service: AppContext = request.app.state.service
    parameters, files = await parsing.read(request, Decode)
    if files:
        raise InvalidParameter("image: /decode takes codes; /reconstruct takes images")
    model = find_model(service.catalog, parameters.model)
    format_ = formats.negotiate(IMAGE_FORMATS, parameters.format, request.headers.get("accept"))
    engine_request = plan_decoding(parameters, model, service.settings.max_images)
    result = (await service.generate(engine_request, model, request)).result()
    batch = responses.image_batch(model, result, {"model": model.name, "digest": model.digest})
    cost = responses.in_small_images(len(result.images), model.image_shape)
    content = await responses.encode(request, lambda: format_.encode(batch), cost)
    return Response(content, media_type=format_.media_type, headers=_headers(model))


@dataclass(frozen=True)
class _Job(Generic[T]):
    """A parsed request with uploads."""

    service: AppContext
    parameters: Encode
    model: Model
    format: Format[T]
    images: list[Tensor]
    """[C, H, W] each."""

    async def run(self, request: Request, *, codes_only: bool) -> Result:
        """The codes of the images, or their reconstructions."""
        engine_request = plan_encoding(self.parameters, self.model, self.images, codes_only=codes_only)
        return (await self.service.generate(engine_request, self.model, request)).result()

    @property
    def metadata(self) -> dict[str, Any]:
        return {"model": self.model.name, "digest": self.model.digest}


async def _read(request: Request, choices: Sequence[Format[T]]) -> _Job[T]:
    service: AppContext = request.app.state.service
    settings = service.settings
    parameters, files = await parsing.read(request, Encode, settings.max_uploads)
    model = find_model(service.catalog, parameters.model)
    format_ = formats.negotiate(choices, parameters.format, request.headers.get("accept"))
    images = await read_images(files, model, parameters, settings, settings.max_images)
    return _Job(service, parameters, model, format_, images)


def _headers(model: Model) -> dict[str, str]:
    return {"X-Model-Digest": model.digest, "Vary": "Accept", "Cache-Control": "no-store"}
