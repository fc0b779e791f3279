"""/inpaint and /vary: samples that complete a part of an uploaded image, or start from one."""

from fastapi import APIRouter, Request, Response

from service.api import parsing
from service.api.context import AppContext
from service.api.generate import documented
from service.api.responses import respond
from service.api.uploading import read_images, read_masked_image
from service.codecs import formats
from service.codecs.formats import IMAGE_FORMATS
from service.errors import InvalidParameter
from service.generation.parameters import Inpaint, Vary
from service.generation.plan import plan_edit
from service.generation.selection import find_editor

router = APIRouter()

MISSING_MASK = (
    "mask: send a picture whose white pixels are to be completed, as an upload called `mask`; or an image with "
    "transparent pixels, which are then completed"
)


@router.post("/inpaint", **documented(Inpaint, IMAGE_FORMATS, uploads={"image": False, "mask": False}))
async def inpaint(request: Request) -> Response:
    """Complete the part of an uploaded image that a mask shows in white; the other pixels stay as they are.

    The image and the mask, a picture of any size, are form fields `image` and `mask`, or base64 in JSON. Without a
    mask, the transparent pixels of the image are completed.
    """
    service: AppContext = request.app.state.service
    parameters, files = await parsing.read_uploads(request, Inpaint, ("image", "mask"), 2)
    model = find_editor(service.catalog, parameters.model)
    format_ = formats.negotiate(IMAGE_FORMATS, parameters.format, request.headers.get("accept"))
    masked = await read_masked_image(files["image"], files["mask"], model, parameters, service.settings)
    if masked is None:
        raise InvalidParameter(MISSING_MASK)
    plan = plan_edit(parameters, model, format_.name, *masked, service.settings.max_images, service.new_seed)
    return await respond(request, plan, format_, deterministic=False)


@router.post("/vary", **documented(Vary, IMAGE_FORMATS, uploads={"image": False}))
async def vary(request: Request) -> Response:
    """Generate variations of an uploaded image: `strength` says how much noise it gets before the model removes it."""
    service: AppContext = request.app.state.service
    parameters, files = await parsing.read(request, Vary)
    model = find_editor(service.catalog, parameters.model)
    format_ = formats.negotiate(IMAGE_FORMATS, parameters.format, request.headers.get("accept"))
    images = await read_images(files, model, parameters, service.settings, max_images=1)
    if not images:
        raise InvalidParameter("image: send an image, as an upload called `image`")
    plan = plan_edit(parameters, model, format_.name, images[0], None, service.settings.max_images, service.new_seed)
    return await respond(request, plan, format_, deterministic=False)
