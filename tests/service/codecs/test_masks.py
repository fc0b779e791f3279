"""Masks are fitted to a model's shape like the images that they belong to."""

import io

import numpy as np
import pytest
from PIL import Image

from pictures.decoding import UnreadablePicture, decode, decode_alpha
from pictures.fitting import RESIZES, Resize
from service.codecs import masks
from service.codecs.masks import MaskedPreparation
from service.codecs.png import png
from service.codecs.uploads import PicturePreparation
from service.errors import InvalidParameter

MASK = np.zeros((60, 120), np.uint8)
MASK[10:30, 50:90] = 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_stays_on_what_it_covers(resize: Resize, channels: int, scale: int) -> None:
    preparation = MaskedPreparation(PicturePreparation(20, 24, channels, "black", resize))
    mask = np.kron(MASK, np.ones((scale, scale), np.uint8))  # of the picture's size, or of twice that size
    image, chosen = preparation.prepare(MASK, mask)
    assert chosen.shape == (20, 24)
    assert chosen.any()
    covered = image.reshape(20, 24, -1)[..., 0] >= 128
    assert (covered != chosen).sum() <= (0 if scale == 1 else 4)


def test_a_mask_of_the_model_s_shape_is_taken_as_it_is() -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[3, 5] = 255
    _, chosen = MaskedPreparation(PicturePreparation(20, 24, 3)).prepare(MASK, mask)
    assert np.array_equal(chosen, mask == 255)


async def test_the_pixels_of_image_and_mask_are_limited_together() -> None:
    preparation = MaskedPreparation(PicturePreparation(20, 24, 1))
    image, mask = png(MASK), png(MASK)
    assert await masks.read(image, mask, preparation, max_pixels=2 * MASK.size) is not None
    for limit in (2 * MASK.size - 1, MASK.size - 1):
        with pytest.raises(InvalidParameter, match="pixels, but at most"):
            await masks.read(image, mask, preparation, max_pixels=limit)
    assert await masks.read(image, None, preparation, max_pixels=MASK.size) is None


def test_the_opacity_of_a_picture_has_the_size_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    opaque = rng.integers(0, 2, (20, 20), np.uint8) * 255
    for side in (40, 2080):  # the larger one is reduced
        buffer = io.BytesIO()
        alpha = np.kron(opaque, np.ones((side // 20, side // 20), np.uint8))
        Image.fromarray(np.dstack((alpha, alpha, alpha, alpha))).save(buffer, "PNG", compress_level=1)
        opacity = decode_alpha(buffer.getvalue())
        assert opacity is not None
        assert opacity.shape == decode(buffer.getvalue(), channels=1).shape
        block = len(opacity) // 20
        assert np.array_equal(opacity[::block, ::block], opaque)
    assert decode_alpha(png(MASK)) is None
    with pytest.raises(UnreadablePicture):
        decode_alpha(b"x")
