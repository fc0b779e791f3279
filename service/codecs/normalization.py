"""Drawings and photographs of a digit, normalized to the 28x28 images of MNIST.

A clean drawing has even black or white paper. Anything else is taken for a photograph: its paper is estimated and
divided out, ruled lines and specks are removed, and what remains is treated as a clean drawing.
"""

from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pictures.decoding import Pixels
from service.errors import InvalidParameter

Polarity = Literal["auto", "dark-on-light", "light-on-dark"]
Values = NDArray[np.floating[Any]]
"""Values [H, W]."""
Mask = NDArray[np.bool_]
"""Selected pixels [H, W]."""
Labels = NDArray[np.int32]
"""The number of the part [H, W] that a pixel belongs to; 0 for none."""

INK_THRESHOLD = 32
"""In a clean drawing, white on black, pixels above this value are ink."""
MIN_EVEN_PAPER = 0.8
"""Least share of a clean drawing's paper that is within 2 of the paper's median."""
MAX_BORDER_INK = 0.1
"""Share of a clean drawing's border that ink covers less than."""
WORKING_SIDE = 512
"""Longest side, in pixels, at which photographs are analysed."""
PAPER_SIDE = 64
"""Longest side at which the paper of a photograph is estimated."""
MIN_CONTRAST = 0.08
"""Least share of the paper's light that ink absorbs."""
MIN_NOISE_RATIO = 4
"""Least contrast of ink, in standard deviations of the paper's noise."""
MIN_INK = 1.5e-4
"""Least share of a photograph that a part of the digit covers, and three pixels."""
MIN_PART = 0.03
"""Least size of a part of the digit relative to its largest part; smaller ones are specks."""
MAX_DARK_SURROUNDINGS = 0.4
"""Largest share of the pixels around a part of the digit that are as dark as the part."""
MAX_RULE_WIDTH = 5
"""Thickness of the thickest ruled line, in pixels at WORKING_SIDE."""
RULE_SLOPES = np.tan(np.radians(np.arange(-15.125, 15.25, 0.25)))
"""Slopes of ruled lines, relative to either side of the picture; none of them is zero."""
MIN_RULE_COVERAGE = 0.6
"""Least visible share of a ruled line, of what thicker ink does not cover between two borders of the picture."""

EMPTY = "image: the picture is empty; draw something on it"
NO_DIGIT = "image: no digit is found; draw one, and leave a margin of paper around it"
NO_MARGIN = "image: the ink fills the picture; leave a margin of paper around the digit"


def normalize(pixels: Pixels, polarity: Polarity = "auto") -> Pixels:
    """Normalize a picture as MNIST was made (LeCun et al. 1998, section III.A): [28, 28], white on black.

    With polarity `auto`, a picture with a bright border is inverted; in a photograph, the ink decides. A picture of
    28x28 is not changed further. In any other, the digit is found, scaled to fit 20x20, and centred by mass. Raises
    InvalidParameter if there is no ink, or no paper around it.
    """
    drawing = light_on_dark(pixels, polarity, _border(pixels))
    if drawing.shape == (28, 28):
        return drawing
    return _center(drawing if _is_clean(drawing) else _extract_ink(pixels, polarity))


def light_on_dark(pixels: Pixels, polarity: Polarity, paper: Pixels) -> Pixels:
    """A picture with bright ink on dark paper; with polarity `auto`, values of the `paper` decide."""
    dark_ink = np.median(paper) > 127 if polarity == "auto" else polarity == "dark-on-light"
    return 255 - pixels if dark_ink else pixels


def _border(pixels: NDArray[Any]) -> NDArray[Any]:
    """The values of the outermost pixels; corners are there twice."""
    return np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def _is_clean(drawing: Pixels) -> bool:
    """Whether a picture has even black paper without ruled lines."""
    paper = np.array(Image.fromarray(drawing).histogram()[: INK_THRESHOLD + 1])
    level = int(np.searchsorted(paper.cumsum(), paper.sum() / 2))  # the median
    if not paper.any() or paper[max(0, level - 2) : level + 3].sum() < MIN_EVEN_PAPER * paper.sum():
        return False
    border = _border(drawing > INK_THRESHOLD)
    if not border.any():
        return True
    return border.mean() < MAX_BORDER_INK and not _ruled_lines(_shrink(drawing, WORKING_SIDE) > INK_THRESHOLD).any()


def _center(drawing: Pixels) -> Pixels:
    """The ink of a drawing, white on black, scaled to fit 20x20 and centred by mass in [28, 28]."""
    ink = drawing > INK_THRESHOLD
    if not ink.any():
        raise InvalidParameter(EMPTY)
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    figure = Image.fromarray(drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = 20 / max(figure.size)
    size = max(1, round(figure.width * scale)), max(1, round(figure.height * scale))
    small = np.asarray(figure.resize(size, Image.Resampling.LANCZOS))
    mass = small.astype(np.float64) + 1e-9
    centre = [float((mass.sum(axis=1 - axis) * np.arange(mass.shape[axis])).sum() / mass.sum()) for axis in (0, 1)]
    top, left = (min(max(0, round(13.5 - middle)), 28 - side) for middle, side in zip(centre, small.shape, strict=True))
    canvas = np.zeros((28, 28), np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


# -- photographs -------------------------------------------------------------------------------------------------------


def _extract_ink(pixels: Pixels, polarity: Polarity) -> Pixels:
    """The digit in a photograph, white on black, at WORKING_SIDE or less."""
    small = _shrink(pixels, WORKING_SIDE)
    picture, paper = small.astype(np.float32), _estimate_paper(small).astype(np.float32)
    if polarity == "light-on-dark" or (polarity == "auto" and _is_light_on_dark(picture - paper)):
        picture, paper = 255 - picture, 255 - paper
    darkness = 1 - picture / np.maximum(paper, 1)
    noise = 1.4826 * float(np.median(np.abs(darkness - np.median(darkness))))
    visible = darkness > max(MIN_NOISE_RATIO * noise, MIN_CONTRAST)
    visible &= ~_ruled_lines(visible)
    if not visible.any():
        raise InvalidParameter(NO_DIGIT)
    threshold = _otsu_threshold(darkness[visible])
    digit = _select_digit(visible & (darkness > threshold), picture, paper)
    black, white = threshold / 2, 0.9 * float(np.median(darkness[digit]))
    ink = 255 * np.clip((darkness - black) / (white - black), 0, 1)
    return np.where(visible & _neighbourhood(np.maximum, digit, 2), ink, 0).astype(np.uint8)


def _shrink(pixels: Pixels, side: int) -> Pixels:
    """The picture with its longest side at most `side`."""
    scale = side / max(pixels.shape)
    if scale >= 1:
        return pixels
    width, height = (max(1, round(length * scale)) for length in pixels.shape[::-1])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def _estimate_paper(picture: Pixels) -> Pixels:
    """The picture without ink: each pixel's median over half of the shorter side, which ink covers less than half of.

    A median follows uneven light and the edges of shadows, and needs no polarity.
    """
    coarse = Image.fromarray(_shrink(picture, PAPER_SIDE))
    median = coarse.filter(ImageFilter.MedianFilter(max(3, min(coarse.size) // 2 | 1)))
    return np.asarray(median.resize(picture.shape[::-1], Image.Resampling.BICUBIC))


def _is_light_on_dark(difference: Values) -> bool:
    """Whether the strongest differences from the paper, near the middle of the picture, are bright."""
    height, width = difference.shape
    cubes = difference * difference * difference
    return bool(np.hanning(height) @ cubes @ np.hanning(width) > 0)


def _otsu_threshold(values: Values) -> float:
    """The threshold that splits `values` >= 0 into the two classes of least variance (Otsu 1979)."""
    counts, edges = np.histogram(values, 64, (0, float(values.max())))
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = counts.cumsum()[:-1], (counts * middles).cumsum()
    above = len(values) - below
    with np.errstate(invalid="ignore"):
        separation = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1 + np.nan_to_num(separation).argmax()])


def _select_digit(ink: Mask, picture: Values, paper: Values) -> Mask:
    """The connected parts of `ink` that belong to the digit. Raises InvalidParameter if there are none or no margin.

    A part of the digit is not a speck, is surrounded by paper, and does not touch the border of the picture if another
    part does not. The edge of a sheet or of a solid surface has paper on one side only.
    """
    labels = np.where(ink, _label(_neighbourhood(np.maximum, ink, 1)), 0)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    parts = areas >= max(3, MIN_INK * ink.size)
    if not parts.any():
        raise InvalidParameter(NO_DIGIT)
    parts &= _surrounded(labels, picture, paper)
    inside = parts.copy()
    inside[_border(labels)] = False
    parts = inside if inside.any() else parts
    if not parts.any():
        raise InvalidParameter(NO_MARGIN)
    parts &= areas >= MIN_PART * areas[parts].max()
    digit = parts[labels]
    if all(side.any() for side in (digit[0], digit[-1], digit[:, 0], digit[:, -1])):
        raise InvalidParameter(NO_MARGIN)
    return digit


def _surrounded(labels: Labels, picture: Values, paper: Values) -> Mask:
    """For each label, whether most pixels around it are brighter than its own pixels nearby."""
    darkest = _neighbourhood(np.minimum, np.where(labels > 0, picture, 255), 3)
    lightest = _neighbourhood(np.maximum, np.where(labels > 0, paper, 0), 3)
    around = np.where(labels > 0, 0, _neighbourhood(np.maximum, labels, 3)).ravel()
    dark = (picture < 0.75 * darkest + 0.25 * lightest).ravel()
    count = int(labels.max()) + 1
    return np.bincount(around[dark], minlength=count) <= MAX_DARK_SURROUNDINGS * np.bincount(around, minlength=count)


def _neighbourhood(extreme: np.ufunc, values: NDArray[Any], radius: int) -> NDArray[Any]:
    """The `extreme`, np.minimum or np.maximum, of all pixels at most `radius` rows and columns away."""
    for axis in (0, 1):
        edges = [(radius, radius) if axis == other else (0, 0) for other in (0, 1)]
        windows = sliding_window_view(np.pad(values, edges, "edge"), 2 * radius + 1, axis=axis)
        values = extreme.reduce(windows, axis=-1)
    return values


def _label(mask: Mask) -> Labels:
    """The number, from 1, of the 8-connected part that each pixel of the mask belongs to; 0 outside.

    A part is a set of horizontal runs. Each round unites the parts of touching runs, so that few rounds suffice.
    """
    height, width = mask.shape
    stride = width + 2
    padded = np.zeros((height, stride), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded.ravel(), append=0)
    starts, ends = np.flatnonzero(steps == 1) + 1, np.flatnonzero(steps == -1) + 1
    first, last = np.searchsorted(ends, starts + stride), np.searchsorted(starts, ends + stride, "right")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) + np.repeat(first - counts.cumsum() + counts, counts)
    parent = np.arange(len(starts))
    while (parent[upper] != parent[lower]).any():
        pair = np.sort([parent[upper], parent[lower]], axis=0)
        np.minimum.at(parent, pair[1], pair[0])
        while (parent != parent[parent]).any():
            parent = parent[parent]
    number = np.unique(parent, return_inverse=True)[1] + 1
    labels = np.zeros(height * stride, np.int32)
    labels[starts], labels[ends] = number, -number
    return labels.cumsum(dtype=np.int32).reshape(height, stride)[:, 1:-1]


# -- ruled lines -------------------------------------------------------------------------------------------------------


def _ruled_lines(mask: Mask) -> Mask:
    """The pixels of thin straight lines from border to border of the picture, except where ink crosses them."""
    return _flat_lines(mask) | _flat_lines(mask.T).T


def _flat_lines(mask: Mask) -> Mask:
    """The lines from left to right, up to 15 degrees from horizontal."""
    height, width = mask.shape
    thickness = max(1, MAX_RULE_WIDTH * max(mask.shape) // WORKING_SIDE)
    thick = _tall_runs(mask, thickness)
    thin = mask & ~thick
    tops = thin.copy()
    tops[1:] &= ~thin[:-1]
    y, x = np.nonzero(tops)
    hidden_y, hidden_x = np.nonzero(thick[:, ::4])  # every fourth column suffices to see how much of a line ink covers
    on_line = np.zeros(len(y), bool)
    offset = width // 3 + 2
    intercepts = np.arange(-offset, height + offset)
    for slope in RULE_SLOPES:
        line = np.rint(y - slope * x).astype(np.int64) + offset
        hidden_line = np.rint(hidden_y - slope * 4 * hidden_x).astype(np.int64) + offset
        visible = np.convolve(np.bincount(line, minlength=len(intercepts)), (1, 1, 1), "same")
        left, right = np.sort([-intercepts / slope, (height - intercepts) / slope], axis=0).clip(0, width)
        length = right - left
        expected = length - 4 * np.bincount(hidden_line, minlength=len(intercepts))
        found = (visible >= MIN_RULE_COVERAGE * expected) & (visible >= length / 5) & (length > width / 10)
        on_line |= found[line]
    lines = np.zeros_like(mask)
    lines[y[on_line], x[on_line]] = True
    for _ in range(thickness - 1):
        lines[1:] |= lines[:-1] & thin[1:]
    return lines


def _tall_runs(mask: Mask, length: int) -> Mask:
    """The pixels in vertical runs of more than `length` pixels."""
    runs = np.zeros_like(mask)
    if len(mask) > length:
        full = np.logical_and.reduce(sliding_window_view(mask, length + 1, axis=0), axis=-1)
        for i in range(length + 1):
            runs[i : i + len(full)] |= full
    return runs
