"""Uploaded pictures, as the images that a model takes."""

from torch import Tensor

from pictures.decoding import CONTRAST
from service.codecs import masks, uploads
from service.codecs.masks import MaskedPreparation
from service.codecs.uploads import DigitPreparation, PicturePreparation, Preparation
from service.engine.catalog import Model
from service.errors import InvalidParameter
from service.generation.parameters import Encode, Interpolate, Nearest, Vary
from service.settings import Settings


async def read_images(
    files: list[bytes],
    model: Model,
    parameters: Encode | Interpolate | Nearest | Vary,
    settings: Settings,
    max_images: int,
) -> list[Tensor]:
    """At most `max_images` uploads as images [C, H, W] float32 in [-1, 1] of the model's shape.

    Raises InvalidParameter.
    """
    return await uploads.read(
        files, _preparation(model, parameters), max_images=max_images, max_pixels=settings.max_pixels
    )


async def read_masked_image(
    images: list[bytes], mask: list[bytes], model: Model, parameters: Vary, settings: Settings, *, white: bool = True
) -> tuple[Tensor, Tensor] | None:
    """An uploaded image [C, H, W] float32 in [-1, 1] and its mask [1, H, W] bool, of the model's shape.

    None without a mask, if the image has no transparency. `white` pixels of a mask count as transparent. Raises
    InvalidParameter.
    """
    if len(images) != 1 or len(mask) > 1:
        raise InvalidParameter("image: send one image, and at most one `mask`")
    preparation, only_mask = _masked_preparation(model, parameters), mask[0] if mask else None
    return await masks.read(images[0], only_mask, preparation, max_pixels=settings.max_pixels, white=white)


def _preparation(model: Model, parameters: Encode | Interpolate | Nearest | Vary) -> Preparation:
    """What the model's manifest says about uploads. Raises InvalidParameter for a polarity that it does not take."""
    if model.manifest.uploads == "digit":
        return DigitPreparation(parameters.polarity)
    return _picture_preparation(model, parameters)


def _masked_preparation(model: Model, parameters: Vary) -> MaskedPreparation:
    """The same for an upload with a mask."""
    if model.manifest.uploads == "digit":
        _, height, width = model.manifest.data_shape
        return MaskedPreparation(PicturePreparation(height, width, 1, CONTRAST), parameters.polarity)
    return MaskedPreparation(_picture_preparation(model, parameters))


def _picture_preparation(model: Model, parameters: Encode | Interpolate | Nearest | Vary) -> PicturePreparation:
    if parameters.polarity != "auto":
        raise InvalidParameter(f"polarity: only for models of digits; {model.name} takes pictures as they are")
    manifest = model.manifest
    channels, height, width = manifest.data_shape
    options = {name: manifest.dataset[name] for name in ("background", "resize") if name in manifest.dataset}
    return PicturePreparation(height, width, channels, **options)
