"""The film of weights: how their samples changed during training.

`film.webp` has the frames, `film.json` says what they show. A film is no part of the model: weights without one, or
with a damaged one, serve all the same.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from models.directories import FILM, SPRITE


class FilmError(Exception):
    """A weights directory has no film that can be shown; the message says why, and what to do."""


@dataclass(frozen=True)
class Film:
    """Frames in the order of training; the last one shows the weights themselves."""

    image: bytes = field(repr=False)
    """A WebP image with all frames, `across` in a row."""
    across: int
    width: int
    height: int
    """Of a frame, in pixels."""
    columns: int
    rows: int
    """Of samples in a frame: image 0, 1, ... of seed 0, row by row."""
    frames: tuple[dict[str, int], ...]
    """The `updates` and `images` of training after which each frame shows the samples."""
    same_run: bool
    """Whether the frames are of the run that made the weights; otherwise of another one by the same recipe."""

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the image."""
        return hashlib.sha256(self.image).hexdigest()

    def describe(self, weights: str) -> dict[str, Any]:
        """What `film.json` says. `weights` is the digest of the weights that the film is about."""
        said = {
            name: getattr(self, name) for name in ("across", "width", "height", "columns", "rows", "same_run", "frames")
        }
        return {"weights": weights, "image": self.digest, **said}

    def files(self, weights: str) -> dict[str, bytes]:
        """The film's files, by name."""
        text = json.dumps(self.describe(weights), indent=1)
        return {SPRITE: self.image, FILM: (text + "\n").encode()}


def read(directory: Path, weights: str) -> Film:
    """Read the film of the weights with the digest `weights` in `directory`.

    Raises FilmError if there is none, if it is damaged, or about other weights.
    """
    try:
        fields = json.loads((directory / FILM).read_text())
        about, digest = fields.pop("weights"), fields.pop("image")
        frames = tuple({name: int(frame[name]) for name in ("updates", "images")} for frame in fields.pop("frames"))
        film = Film(image=(directory / SPRITE).read_bytes(), frames=frames, **fields)
    except FileNotFoundError:
        raise FilmError(f"{directory.name} has no film") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FilmError(f"the film of {directory.name} is damaged: {error!r}; restore it, or export it again") from None
    if film.digest != digest:
        raise FilmError(f"the film of {directory.name} is damaged: {SPRITE} differs from {FILM}; restore both")
    if about != weights:
        raise FilmError(f"the film of {directory.name} is about other weights; export it again")
    return film
