"""Uploaded pictures, as the images that a model takes."""

from torch import Tensor

from service.codecs import uploads
from service.codecs.uploads import DigitPreparation, PicturePreparation, Preparation
from service.engine.catalog import Model
from service.errors import InvalidParameter
from service.generation.parameters import Encode, Interpolate
from service.settings import Settings


async def read_images(
    files: list[bytes], model: Model, parameters: Encode | Interpolate, settings: Settings, max_images: int
) -> list[Tensor]:
    """At most `max_images` uploads as images [C, H, W] float32 in [-1, 1] of the model's shape.

    Raises InvalidParameter.
    """
    return await uploads.read(
        files, _preparation(model, parameters), max_images=max_images, max_pixels=settings.max_pixels
    )


def _preparation(model: Model, parameters: Encode | Interpolate) -> Preparation:
    """What the model's manifest says about uploads. Raises InvalidParameter for a polarity that it does not take."""
    manifest = model.manifest
    if manifest.uploads == "digit":
        return DigitPreparation(parameters.polarity)
    if parameters.polarity != "auto":
        raise InvalidParameter(f"polarity: only for models of digits; {model.name} takes pictures as they are")
    channels, height, width = manifest.data_shape
    options = {name: manifest.dataset[name] for name in ("background", "resize") if name in manifest.dataset}
    return PicturePreparation(height, width, channels, **options)
