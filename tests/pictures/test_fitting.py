"""Pictures come to the shape that a model or data set asks for."""

from collections.abc import Sequence

import numpy as np
import pytest

from pictures.decoding import Pixels
from pictures.fitting import RESIZES, fit


def halves(height: int, width: int, left: Sequence[int] = (0, 0, 255), right: Sequence[int] = (255, 0, 0)) -> Pixels:
    """A picture [H, W, 3] whose halves have one colour each."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return pixels


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [(5, 9), (9, 5, 3), (200, 3, 3), (1, 900), (1, 1)])
def test_a_picture_comes_to_the_shape(given: tuple[int, ...], channels: int, resize: str) -> None:
    fitted = fit(np.full(given, 77, np.uint8), 16, 24, channels, resize=resize)  # type: ignore[arg-type]
    assert fitted.dtype == np.uint8
    assert fitted.shape == ((16, 24) if channels == 1 else (16, 24, 3))
    assert resize == "pad" or (fitted == 77).all()


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_shape_is_unchanged(resize: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    assert np.array_equal(fit(pixels, 8, 12, 3, resize=resize), pixels)  # type: ignore[arg-type]


def test_crop_keeps_the_middle() -> None:
    pixels = halves(32, 96)
    pixels[:, :32] = pixels[:, 64:] = 255  # cut off
    cropped = fit(pixels, 8, 8, 3, resize="crop")
    assert abs(cropped[:, [0, 7]].astype(int) - halves(8, 2)).max() < 20, "only the middle is in it"
    assert np.array_equal(fit(pixels.transpose(1, 0, 2), 8, 8, 3, resize="crop"), cropped.transpose(1, 0, 2))


def test_pad_keeps_the_whole_picture_on_the_background() -> None:
    padded = fit(halves(16, 32), 16, 16, 3, resize="pad", background="#102030")
    assert (padded[[0, 3, 12, 15]] == (0x10, 0x20, 0x30)).all()
    assert np.array_equal(padded[4:12, [0, 15]], halves(8, 2))


def test_pad_of_a_grey_picture_uses_the_luma_of_the_background() -> None:
    padded = fit(np.zeros((8, 16), np.uint8), 16, 16, 1, resize="pad", background="red")
    assert set(padded[:4].flat) == {76}


def test_stretch_keeps_the_whole_picture() -> None:
    assert np.array_equal(fit(halves(16, 64), 16, 16, 3, resize="stretch")[:, [0, 15]], halves(16, 2))


def test_scaling_averages_what_it_leaves_out() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert abs(fit(stripes, 8, 8, 1).astype(int) - 127).max() < 10


def test_grey_is_the_luma_of_a_colour() -> None:
    assert fit(np.full((8, 8, 3), (255, 0, 0), np.uint8), 8, 8, 1).mean() == 76
