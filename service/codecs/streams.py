"""Encoders that turn images into a file one at a time, so that a response can start before its last image exists."""

import base64
import json
from dataclasses import dataclass
from typing import Any, Protocol

from service.codecs.png import Images, png
from service.codecs.recipe import Recipe


@dataclass(frozen=True)
class Contents:
    """What a file of images holds, as far as it is known before the first image exists."""

    count: int
    """The number of images."""
    shape: tuple[int, ...]
    """Of each image: [H, W], or [H, W, 3] in colour."""
    classes: tuple[str, ...]
    """The names of the labels by number; empty if the model takes no label."""
    metadata: dict[str, Any]
    """`model`, `seed` and what else is needed to reproduce the images."""
    recipe: Recipe | None = None
    """What PNGs say about how they were made."""

    def png(self, index: int, image: Images, label: int) -> bytes:
        """The PNG of the `index`-th image, whose label is `label`."""
        if self.recipe is None:
            return png(image)
        return png(image, self.recipe.of_image(index, self.class_name(label)))

    def class_name(self, label: int) -> str | None:
        """The name of a label; None for -1, no label."""
        return self.classes[label] if label >= 0 else None


class StreamEncoder(Protocol):
    """The bytes that `begin`, each `add` and `end` return, joined in that order, are the file."""

    def begin(self) -> bytes:
        """The bytes before the first image."""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        """The bytes of the next image [H, W] or [H, W, 3], with its label (-1: none) and its error, if there is one."""

    def end(self) -> bytes:
        """The bytes after the last image."""


class JsonEncoder:
    """A JSON object: the metadata, and `images`, each with `label`, `class` and, in base64, `png`."""

    def __init__(self, contents: Contents) -> None:
        self.contents, self.index = contents, 0

    def begin(self) -> bytes:
        return json.dumps({**self.contents.metadata, "images": []}).encode()[:-2]

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        index, self.index = self.index, self.index + 1
        return b", " * bool(index) + json.dumps(_item(self.contents, index, image, label, error)).encode()

    def end(self) -> bytes:
        return b"]}"


class EventEncoder:
    """Server-sent events: `start` with the metadata, one `image` per image with its index, `end`.

    The sender may put `progress` and `preview` events between them.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents, self.index = contents, 0

    def begin(self) -> bytes:
        return event("start", {**self.contents.metadata, "n": self.contents.count})

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        index, self.index = self.index, self.index + 1
        return event("image", {"index": index, **_item(self.contents, index, image, label, error)})

    def end(self) -> bytes:
        return event("end", {})


def event(name: str, data: dict[str, Any]) -> bytes:
    """Encode a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def preview(index: int, image: Images, guess: Images | None = None) -> bytes:
    """Encode an event with the current state of an image [H, W] or [H, W, 3] that is not finished.

    `guess` is what the model predicts as the finished image.
    """
    pictures = {"png": image} if guess is None else {"png": image, "guess": guess}
    return event(
        "preview",
        {"index": index, **{name: base64.b64encode(png(picture)).decode() for name, picture in pictures.items()}},
    )


def _item(contents: Contents, index: int, image: Images, label: int, error: float | None) -> dict[str, Any]:
    file = base64.b64encode(contents.png(index, image, label)).decode()
    item = {"label": label, "class": contents.class_name(label), "png": file}
    return item if error is None else {**item, "error": error}
