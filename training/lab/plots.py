"""The style of the pictures: colours safe for colour-blind readers, labelled axes, legible at half size."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
"""The palette of Okabe & Ito (2008), distinguishable with all common kinds of colour vision."""
CYCLE = (BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK, YELLOW)
TEN = np.array([*CYCLE, "#999999", "#7B3294"])
"""Ten colours, for digits."""
DATA, GENERATED = BLUE, ORANGE
"""The colours of data points and of generated points in all pictures."""
STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": f"cycler('color', {list(CYCLE)})",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "image.cmap": "cividis",
}
plt.rcParams.update(STYLE)


def figure(rows: int = 1, columns: int = 1, width: float = 5.0, height: float = 4.0) -> tuple[Figure, Any]:
    """A figure of rows * columns panels, each `width` by `height` inches of 100 pixels.

    Returned with its panels: one Axes, or an array [rows, columns] of them.
    """
    fig, axes = plt.subplots(rows, columns, figsize=(columns * width, rows * height), squeeze=False)
    return fig, axes[0, 0] if rows == columns == 1 else axes


def plane(axes: Axes, title: str = "", reach: float = 1.0) -> None:
    """Set `axes` to the square of the plane from -reach to reach."""
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title, xlabel="$x_1$", ylabel="$x_2$")


def png(fig: Figure) -> bytes:
    """The figure as a PNG with a palette of 128 colours; closes the figure."""
    image = _image(fig)
    plt.close(fig)
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation(frames: int, draw: Callable[[int], Figure], milliseconds: int = 120) -> bytes:
    """An endlessly looping WebP of `frames` figures, with a pause at the last one."""
    images = []
    for k in range(frames):
        fig = draw(k)
        images.append(_image(fig))
        plt.close(fig)
    buffer = io.BytesIO()
    durations = [milliseconds] * (frames - 1) + [12 * milliseconds]
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=60, method=4
    )
    return buffer.getvalue()


def _image(fig: Figure) -> Image.Image:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
