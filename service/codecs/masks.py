"""Uploaded images with a mask: which pixels of the image a model completes."""

import asyncio
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pictures.decoding import Pixels, UnreadablePicture, count_pixels, decode, decode_alpha
from pictures.fitting import fit
from service.codecs.normalization import Polarity, light_on_dark
from service.codecs.uploads import DECODER, NPZ, PicturePreparation, UploadBudget, decode_file, to_tensor
from service.errors import InvalidParameter

THRESHOLD = 128
"""Values of a mask from which a pixel is completed."""


@dataclass(frozen=True)
class MaskedPreparation:
    """How an image and its mask are brought to a model's shape."""

    picture: PicturePreparation
    polarity: Polarity | None = None
    """What pictures of digits show; None for other pictures. Half a digit is neither cropped nor centred."""

    def prepare(self, pixels: Pixels, mask: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
        """The image uint8 [H, W] or [H, W, 3] and the mask bool [H, W] of the model's shape. Raises InvalidParameter.

        A mask of the model's shape is taken as it is. Any other is scaled to the picture's size, and then like it.
        """
        picture, shape = self.picture, (self.picture.height, self.picture.width)
        if mask.shape != shape:
            if mask.shape != pixels.shape[:2]:
                mask = np.asarray(Image.fromarray(mask).resize(pixels.shape[1::-1]))
            mask = fit(mask, *shape, 1, resize=picture.resize, background="black")
        chosen = mask >= THRESHOLD
        if not chosen.any():
            raise InvalidParameter("mask: nothing is to be completed; make a part of it white or transparent")
        if chosen.all():
            raise InvalidParameter("mask: all is to be completed; leave a part of it black, or use /generate")
        image = picture.prepare(pixels)
        if self.polarity is not None:
            image = light_on_dark(image, self.polarity, _known_paper(image, ~chosen))
        return image, chosen


async def read(
    image: bytes, mask: bytes | None, preparation: MaskedPreparation, *, max_pixels: int, white: bool = True
) -> tuple[Tensor, Tensor] | None:
    """Decode and prepare an image and its mask on a thread: [C, H, W] float32 in [-1, 1], and [1, H, W] bool.

    Transparent pixels of the mask are to be completed, and `white` ones. Without a mask, transparent pixels of the
    image are; None if it has no transparency. Raises InvalidParameter.
    """
    run = asyncio.get_running_loop().run_in_executor
    return await run(DECODER, _read, image, mask, preparation, max_pixels, white)


def _read(
    image: bytes, mask: bytes | None, preparation: MaskedPreparation, max_pixels: int, white: bool
) -> tuple[Tensor, Tensor] | None:
    budget = UploadBudget(1, max_pixels)
    (pixels,) = decode_file(image, preparation.picture, budget)
    chosen = _transparency(image) if mask is None else _mask(mask, budget, white)
    if chosen is None:
        return None
    prepared, to_complete = preparation.prepare(pixels, chosen)
    return to_tensor(prepared), torch.from_numpy(to_complete)[None]


def _mask(data: bytes, budget: UploadBudget, white: bool) -> Pixels:
    """The mask [H, W] in a file, 255 to be completed."""
    try:
        UploadBudget(1, budget.pixels).spend((1, 1, count_pixels(data)))
        mask = decode(data, channels=1, background="white") if white else _transparency(data)
    except UnreadablePicture as error:
        raise InvalidParameter(f"mask: {error}") from None
    if mask is None:
        raise InvalidParameter("mask: it has no transparent pixels; make what is to be completed transparent")
    return mask


def _transparency(data: bytes) -> Pixels | None:
    """The mask [H, W] that the transparent pixels of a picture are, which fits into the budget; None if it has none."""
    alpha = None if data.startswith(NPZ) else decode_alpha(data)
    return None if alpha is None else 255 - alpha


def _known_paper(image: Pixels, known: NDArray[np.bool_]) -> Pixels:
    """The known values at the border of an image, where there is mostly paper; or all known values."""
    border = known.copy()
    border[1:-1, 1:-1] = False
    return image[border] if border.any() else image[known]
