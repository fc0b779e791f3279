"""Photographs of digits on paper are normalized to what MNIST shows."""

import asyncio
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from models.pixels import to_uint8
from service.codecs import normalization, uploads
from service.codecs.normalization import normalize
from service.codecs.uploads import DigitPreparation
from service.errors import InvalidParameter
from training import classifier, data


@dataclass(frozen=True)
class Scene:
    """How a digit is photographed: grey values, and lengths as shares of the picture's height."""

    paper: int = 220
    ink: int = 40
    light_loss: float = 0.0
    """Share of the light that is lost from one side of the picture to the other."""
    light_from: float = 0.0
    """Direction of the brightest side, in degrees."""
    rule_spacing: float = 0.0
    squared: bool = False
    blur: float = 0.002
    noise: float = 3.0
    turn: float = 0.0
    """Degrees."""
    digit_height: float = 0.5


SCENES = {
    "white paper": Scene(paper=250, ink=30, noise=2),
    "grey paper": Scene(paper=222, ink=30),
    "recycled paper": Scene(paper=180, ink=50, noise=5),
    "dark paper": Scene(paper=120, ink=30, noise=4),
    "darker paper": Scene(paper=90, ink=20, noise=4),
    "light from the left": Scene(paper=240, light_loss=0.55),
    "light from a corner": Scene(paper=200, light_loss=0.6, light_from=45, noise=5),
    "ruled": Scene(paper=235, rule_spacing=0.09),
    "squared, turned": Scene(paper=225, ink=45, rule_spacing=0.075, squared=True, turn=10),
    "small, blurred": Scene(paper=210, ink=60, blur=0.007, digit_height=0.25),
    "pencil, noisy, turned": Scene(paper=215, ink=120, noise=10, turn=-10),
    "all of it": Scene(160, 35, light_loss=0.5, light_from=200, rule_spacing=0.08, blur=0.004, noise=7, turn=10),
}


def photograph(digit: np.ndarray, scene: Scene, seed: int, height: int = 360) -> np.ndarray:
    """A photograph uint8 [height, 4/3 height] of a digit [28, 28], which is white on black."""
    rng, width = np.random.default_rng(seed), height * 4 // 3
    y, x = np.mgrid[:height, :width].astype(np.float32)
    side = round(height * scene.digit_height * 28 / 20)
    sheet = Image.new("L", (width, height))
    corner = int((width - side) * rng.uniform(0.35, 0.65)), int((height - side) * rng.uniform(0.35, 0.65))
    sheet.paste(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC), corner)
    turned = sheet.rotate(-scene.turn, Image.Resampling.BICUBIC)
    ink = np.clip(np.asarray(turned, np.float32) / 255 / 0.4 - 0.75, 0, 1)  # the edge of a pen's stroke is sharp
    paper = np.full((height, width), scene.paper, np.float32)
    if scene.rule_spacing:
        turn, spacing = np.radians(scene.turn), scene.rule_spacing * height
        across = [y * np.cos(turn) - x * np.sin(turn), x * np.cos(turn) + y * np.sin(turn)]
        for position in across[: 1 + scene.squared]:
            distance = np.abs((position + rng.uniform(0, spacing)) % spacing - spacing / 2)
            paper = np.where(distance < height / 400, 0.55 * scene.paper, paper)
    light = x / width * np.cos(np.radians(scene.light_from)) + y / height * np.sin(np.radians(scene.light_from))
    light = 1 - scene.light_loss * (light - light.min()) / np.ptp(light)
    picture = Image.fromarray(((paper * (1 - ink) + scene.ink * ink) * light).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(scene.blur * height)), np.float32)
    return (blurred + rng.normal(0, scene.noise, blurred.shape)).clip(0, 255).round().astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    """A colour JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


def upload(content: bytes) -> torch.Tensor:
    """The image [1, 28, 28] uint8 of an uploaded file."""
    (image,) = asyncio.run(uploads.read([content], DigitPreparation(), max_images=1, max_pixels=24 * 2**20))
    return to_uint8(image).reshape(1, 28, 28)


def shares_recognized(mnist_root: Path, digits: int, height: int) -> dict[str, float]:
    """For each scene, the share of photographs whose digit the `report` classifier recognizes after the upload."""
    judge, test = classifier.load("report"), data.load("mnist", mnist_root, "test")
    shares = {}
    for seed, (name, scene) in enumerate(SCENES.items()):
        chosen = np.random.default_rng(seed).choice(len(test.images), digits, replace=False)
        photographs = [photograph(test.images[i, 0].numpy(), scene, i, height) for i in chosen]
        images = torch.stack([upload(jpeg(pixels)) for pixels in photographs])
        recognized = judge.features_and_logits(images)[1].argmax(1) == test.labels[chosen]
        shares[name] = float(recognized.float().mean())
    return shares


def test_digits_in_photographs_are_recognized(mnist_root: Path) -> None:
    shares = shares_recognized(mnist_root, digits=4, height=300)
    assert np.mean(list(shares.values())) >= 0.95, shares


@pytest.mark.slow
def test_digits_in_large_photographs_are_recognized(mnist_root: Path) -> None:
    shares = shares_recognized(mnist_root, digits=25, height=900)
    assert np.mean(list(shares.values())) >= 0.97, shares
    assert min(shares.values()) >= 0.9, shares


# -- simple photographs ------------------------------------------------------------------------------------------------


def bar(paper: int, ink: int, height: int = 100, width: int = 100) -> np.ndarray:
    """A vertical bar of ink on even paper."""
    pixels = np.full((height, width), paper, np.uint8)
    pixels[height // 5 : height * 4 // 5, width * 9 // 20 : width * 11 // 20] = ink
    return pixels


def difference(image: np.ndarray, expected: np.ndarray) -> float:
    """The mean difference of two images, of which rounding the centre may shift one by a pixel."""
    shifts = [np.roll(image.astype(int), (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return min(float(np.abs(shift - expected).mean()) for shift in shifts)


@pytest.mark.parametrize(
    ("paper", "ink"), [(250, 30), (222, 30), (160, 60), (126, 30), (90, 30), (60, 20), (40, 220), (100, 240), (0, 90)]
)
def test_paper_and_ink_may_have_any_brightness(paper: int, ink: int) -> None:
    image = normalize(bar(paper, ink))
    rows, columns = np.flatnonzero(image.max(1) > 60), np.flatnonzero(image.max(0) > 60)
    assert (len(rows), len(columns)) in {(20, 3), (20, 4)}
    assert image.max() > 80
    assert np.median(image) == 0


def test_photographs_in_any_light_give_the_same_digit() -> None:
    x = np.linspace(1, 0.4, 240)
    expected = normalize(bar(255, 0, 300, 240))
    lit = np.rint(bar(230, 30, 300, 240) * x).astype(np.uint8)
    assert difference(normalize(lit), expected) < 3
    assert difference(normalize(np.rot90(lit)), np.rot90(expected)) < 3


@pytest.mark.parametrize("turn", [0, 4, -12])
@pytest.mark.parametrize("ink", [0, 170])
def test_ruled_lines_are_removed(turn: float, ink: int) -> None:
    digit = bar(255, 0, 300, 400)
    sheet = Image.new("L", (600, 600), 255)
    draw = ImageDraw.Draw(sheet)
    for position in range(7, 600, 37):
        draw.line([(0, position), (600, position)], fill=ink, width=2)
        draw.line([(position, 0), (position, 600)], fill=ink, width=2)
    ruled = np.asarray(sheet.rotate(turn, Image.Resampling.BICUBIC))[150:450, 100:500]
    assert difference(normalize(np.minimum(ruled, digit)), normalize(digit)) < 8


def test_specks_are_removed() -> None:
    pixels = np.rint(bar(200, 40, 300, 300) * np.linspace(1, 0.8, 300)).astype(np.uint8)
    speckled = pixels.copy()
    for row, column in np.random.default_rng(0).integers(5, 295, (30, 2)):
        speckled[row : row + 3, column : column + 2] = 60
    assert difference(normalize(speckled), normalize(pixels)) < 3


def test_the_table_around_a_sheet_is_ignored() -> None:
    photo = np.full((300, 400), 60, np.uint8)
    photo[25:275, 30:370] = bar(225, 40, 250, 340)
    turned = [
        np.asarray(Image.fromarray(pixels).rotate(3, Image.Resampling.BICUBIC, fillcolor=fill))
        for pixels, fill in ((photo, 60), (bar(255, 0, 250, 340), 255))
    ]
    assert difference(normalize(turned[0]), normalize(turned[1])) < 5


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((100, 100), 100, np.uint8),
        np.full((100, 100), 222, np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8),
        np.random.default_rng(0).normal(200, 10, (200, 300)).astype(np.uint8),
        np.tile(np.linspace(90, 230, 300).astype(np.uint8), (200, 1)),
    ],
    ids=["grey", "light grey", "noise", "noisy paper", "uneven light"],
)
def test_a_photograph_without_a_digit_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InvalidParameter, match="no digit is found; draw one, and leave a margin of paper around it"):
        normalize(pixels)


@pytest.mark.parametrize("margin", [2, 20])
def test_ink_that_fills_its_frame_is_refused(margin: int) -> None:
    pixels = np.full((100, 100), 222, np.uint8)
    pixels[margin : 100 - margin, margin : 100 - margin] = 30
    with pytest.raises(InvalidParameter, match="leave a margin of paper"):
        normalize(pixels)


def test_ink_that_touches_all_borders_is_refused() -> None:
    paper = Image.new("L", (300, 300), 200)
    draw = ImageDraw.Draw(paper)
    draw.line([(0, 0), (300, 300)], fill=40, width=20)
    draw.line([(0, 300), (300, 0)], fill=40, width=20)
    with pytest.raises(InvalidParameter, match="the ink fills the picture"):
        normalize(np.asarray(paper))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2, 2), (3, 700), (28, 27), (600, 1)])
def test_pictures_of_any_shape_are_normalized_or_refused(shape: tuple[int, int]) -> None:
    for pixels in (np.zeros(shape, np.uint8), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)):
        with contextlib.suppress(InvalidParameter):
            assert normalize(pixels).shape == (28, 28)


# -- clean drawings ----------------------------------------------------------------------------------------------------


def strokes(side: int, seed: int) -> np.ndarray:
    """Anti-aliased white strokes on black, as a canvas draws them."""
    rng, scale = np.random.default_rng(seed), 4
    image = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(image)
    points = [tuple(point) for point in rng.uniform(0.15, 0.85, (6, 2)) * side * scale]
    draw.line(points, fill=255, width=side * scale // 14, joint="curve")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


@pytest.mark.parametrize("side", [100, 280, 1100])
@pytest.mark.parametrize("inverted", [False, True], ids=["white on black", "black on white"])
@pytest.mark.parametrize("quality", [None, 60, 95])
def test_clean_drawings_are_not_treated_as_photographs(
    monkeypatch: pytest.MonkeyPatch, side: int, inverted: bool, quality: int | None
) -> None:
    monkeypatch.setattr(normalization, "_extract_ink", None)
    for seed in range(4):
        drawing = strokes(side, seed)
        pixels = 255 - drawing if inverted else drawing
        if quality is not None:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
            pixels = np.asarray(Image.open(buffer))
        image = normalize(pixels)
        if quality is None:
            assert np.array_equal(image, normalize(drawing))


def test_a_stroke_may_leave_a_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "_extract_ink", None)
    drawing = np.zeros((280, 280), np.uint8)
    drawing[:200, 130:150] = 255
    image = normalize(drawing)
    assert np.flatnonzero(image.any(1)).tolist() == list(range(4, 24))


# -- connected parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0, 0.1, 0.4, 0.6, 1])
def test_connected_parts_equal_those_of_scipy(density: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(0).random((61, 83)) < density
    labels = normalization._label(mask)
    expected, count = ndimage.label(mask, np.ones((3, 3)))
    assert labels.max() == count
    assert len(set(zip(labels.ravel(), expected.ravel(), strict=True))) == len(np.unique(expected))
