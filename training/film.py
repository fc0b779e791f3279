"""The film of a run: the same samples after more and more updates.

A run writes frames while it trains; an export joins them in one image, and the weights' own samples are the last frame.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models import store
from models.base import Family, Recipe
from models.film import Film, read
from models.pixels import image_grid
from models.store import Manifest
from training.config import CONFIG, ConfigError, RunConfig
from training.samples import fixed_samples, grid_png

FRAMES = "film"
"""The folder of a run's frames, `UPDATES.png`."""
ROWS = 4
"""Of samples in a frame."""
MAX_COLUMNS = 12
"""Of samples in a frame; a family with more classes than that has 10."""
LEADING_DIGITS = "12357"
"""Of the numbers of updates that have a frame."""
FITTED = 4096
"""At most so many images estimate the closed form of a frame: all would take longer than the updates between frames."""
QUALITY = 50
"""Of the WebP image: a frame of 40 digits takes 3 to 9 KB, the more noise the more."""
MAX_SIDE = 16383
"""Pixels of a WebP image."""
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.4, 2.0
"""Of an animation."""
CAPTION = 28
"""Pixels of the line below an animation's frames."""


def is_due(updates: int) -> bool:
    """Whether a run draws a frame after `updates` updates: 0, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000, ...

    The frames are about evenly spaced in the logarithm of the updates, because samples change most at the start.
    """
    digits = str(updates)
    return updates == 0 or (len(digits) > 1 and digits[0] in LEADING_DIGITS and not digits[1:].strip("0"))


def images_per_update(family: Family, recipe: Recipe) -> int:
    """Training images that an iteration uses. The first player of its order may take several batches."""
    order = family.update_order()
    return recipe.batch * max(1, order.count(order[0]) if order else 0)


def frame_png(family: Family, device: torch.device) -> bytes:
    """One frame: a grid of the first samples of seed 0, by the family's default sampling options without guidance.

    A row has one sample of each class if that fits, otherwise 10. Uses no global random state.
    """
    columns = _columns(family)
    return grid_png(fixed_samples(family, device, columns * ROWS), columns, ROWS)


def assemble(run: Path, family: Family, recipe: Recipe, images: int, *, same_run: bool) -> Film | None:
    """The film of a run, up to the weights of `family` after `images` images; None if it has no frames.

    `same_run` says whether the run made these weights.
    """
    each = images_per_update(family, recipe)
    frames = {updates: path for updates, path in _frame_paths(run).items() if updates < images // each}
    if not frames:
        return None
    pictures = [np.asarray(Image.open(path)) for path in frames.values()]
    pictures.append(np.asarray(Image.open(io.BytesIO(frame_png(family, torch.device("cpu"))))))
    height, width = pictures[0].shape[:2]
    across = math.ceil(len(pictures) * height / MAX_SIDE)
    return Film(
        image=_webp(image_grid(np.stack(pictures), across)),
        across=across,
        width=width,
        height=height,
        columns=_columns(family),
        rows=ROWS,
        frames=tuple({"updates": count, "images": count * each} for count in (*frames, images // each)),
        same_run=same_run,
    )


def add(run: Path, directory: Path) -> Film:
    """Write the film of `run` beside the weights in `directory`, which another run by the same recipe made.

    Raises ConfigError if the run has no frames, or another family, configuration, recipe or data set than the weights,
    except for its epochs. Raises WeightsError if there are no weights.
    """
    config = RunConfig.read(run / CONFIG)
    family, manifest = store.load(directory)
    _require_same_recipe(config, run, manifest, directory)
    film = assemble(run, family, config.training_recipe(), manifest.training["images_seen"], same_run=False)
    if film is None:
        raise ConfigError(f"{run} has no frames in {FRAMES}/; train it with this version")
    for name, content in film.files(manifest.digest).items():
        store.write_atomic(directory / name, content)
    return film


def animation(directory: Path, scale: int = 2) -> bytes:
    """The film of the weights in `directory` as an animated WebP, with the updates and images below each frame.

    Raises WeightsError, and FilmError if there is no film.
    """
    film = read(directory, store.read_manifest(directory).digest)
    sheet = Image.open(io.BytesIO(film.image)).convert("RGB")
    width, height = film.width * scale, film.height * scale
    pictures = []
    for i, frame in enumerate(film.frames):
        left, top = i % film.across * film.width, i // film.across * film.height
        picture = Image.new("RGB", (width, height + CAPTION))
        cut = sheet.crop((left, top, left + film.width, top + film.height))
        picture.paste(cut.resize((width, height), Image.Resampling.NEAREST))
        is_of_weights = i == len(film.frames) - 1 and not film.same_run
        text = (
            f"{'the weights, ' if is_of_weights else ''}after {frame['updates']:,} updates, {frame['images']:,} images"
        )
        ImageDraw.Draw(picture).text((8, height + 5), text, "white", ImageFont.load_default(16))
        pictures.append(picture)
    seconds = [FRAME_SECONDS] * (len(pictures) - 1) + [LAST_FRAME_SECONDS]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=[int(1000 * s) for s in seconds], loop=0,
        quality=QUALITY, method=6,
    )  # fmt: skip
    return buffer.getvalue()


def _require_same_recipe(config: RunConfig, run: Path, manifest: Manifest, directory: Path) -> None:
    """Raise ConfigError, which names all differences, if `run` was not trained by the recipe of the weights."""
    training, new_fields = manifest.training, vars(type(config.model_config())())  # that older weights lack
    ours = {
        "family": config.family, "revision": config.revision, "precision": config.precision,
        "images": config.dataset.get("digest"), "augmentation": config.augmentation, "start": config.start,
        **{f"model.{name}": value for name, value in {**new_fields, **config.model}.items()},
        **{f"recipe.{name}": value for name, value in config.recipe.items()},
    }  # fmt: skip
    theirs = {
        "family": manifest.family, "revision": manifest.revision, "precision": training["precision"],
        "images": manifest.dataset["digest"], "augmentation": manifest.dataset.get("augmentation", {}),
        "start": training.get("start", {}),
        **{f"model.{name}": value for name, value in {**new_fields, **manifest.config}.items()},
        **{f"recipe.{name}": value for name, value in training["recipe"].items()},
    }  # fmt: skip
    changed = [
        f"{name}: {ours.get(name)}, not {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if name != "recipe.epochs" and ours.get(name) != theirs.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{run} has another recipe than {directory} ({'; '.join(changed)}); use a run by the same one"
        )


def _columns(family: Family) -> int:
    return family.classes if ROWS < family.classes <= MAX_COLUMNS else 10


def _frame_paths(run: Path) -> dict[int, Path]:
    """The frames of a run by their updates, in order."""
    paths = {int(path.stem): path for path in sorted((run / FRAMES).glob("*.png")) if path.stem.isdecimal()}
    return {updates: path for updates, path in paths.items() if is_due(updates)}


def _webp(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()
