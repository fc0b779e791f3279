"""The recipe in a PNG: the parameters of /generate that draw it again, as an iTXt chunk."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pydantic_core import to_json

KEYWORD = "drawbridge"
"""The keyword of the chunk (PNG, third edition, 11.3.3.4). `drawbridge/recipe.py` reads it."""


class Recipe:
    """How the images of a request to /generate are made. Equal requests have equal recipes, to the byte."""

    def __init__(self, parameters: dict[str, Any], first: int, labels: Sequence[str], no_label: str | None) -> None:
        """`parameters` has what all images share, such as `model`, `digest` and `seed`; `labels` those requested.

        `no_label` is how requests spell that an image has no label; None if the model takes none.
        """
        self.parameters, self.first, self.labels, self.no_label = parameters, first, labels, no_label

    def of_grid(self, count: int) -> bytes:
        """The recipe of `count` images in one picture: the JSON object of a request, with the digest, in UTF-8."""
        return self._text(self.first, count, self.labels)

    def of_image(self, index: int, label: str | None) -> bytes:
        """The recipe of the `index`-th image of the request, whose label is `label`; None if it has none."""
        label = label or self.no_label
        return self._text(self.first + index, 1, [] if label is None else [label])

    def _text(self, first: int, count: int, labels: Sequence[str]) -> bytes:
        label = b',"label":%b' % to_json(labels) if labels else b""
        return b'%b,"first":%d,"n":%d%b}' % (self._shared, first, count, label)

    @cached_property
    def _shared(self) -> bytes:
        return to_json(self.parameters)[:-1]
