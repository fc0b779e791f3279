"""The recipe in a PNG of the service: the request that draws it again."""

import json
import struct
from pathlib import Path
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = b"drawbridge" + bytes(5)
"""The keyword of the iTXt chunk, and an uncompressed text without a language or a translated keyword."""


class NoRecipe(ValueError):
    """A file has no recipe; the message is one line that says why."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The parameters of /generate that draw a PNG again, and the `digest` of the weights that drew it.

    Raises NoRecipe, and OSError if the file cannot be read.
    """
    data = Path(path).read_bytes()
    if not data.startswith(SIGNATURE):
        raise NoRecipe(f"{path} is not a PNG; only PNGs hold a recipe")
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        text = data[position + 8 : position + 8 + length]
        if kind == b"iTXt" and text.startswith(HEAD):
            return _parse(path, text.removeprefix(HEAD))
        position += length + 12  # the length, the kind and the checksum have 4 bytes each
    raise NoRecipe(f"{path} has no recipe; PNGs of /generate have one, unless another program has saved them since")


def _parse(path: str | Path, text: bytes) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
        if isinstance(recipe["model"], str) and isinstance(recipe["digest"], str):
            return dict(recipe)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise NoRecipe(f"{path}: the recipe is damaged")
