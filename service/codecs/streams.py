"""Encoders that turn images into a file one at a time, so that a response can start before its last image exists."""

import base64
import json
from typing import Any, Protocol

from service.codecs.png import Images, png


class StreamEncoder(Protocol):
    """The bytes that `begin`, each `add` and `end` return, joined in that order, are the file."""

    def begin(self) -> bytes:
        """The bytes before the first image."""

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        """The bytes of the next image [28, 28], its label (-1: none) and its reconstruction error, if it has one."""

    def end(self) -> bytes:
        """The bytes after the last image."""


class JsonEncoder:
    """A JSON object: the metadata, and `images`, each with a `label` and a `png` in base64."""

    def __init__(self, count: int, metadata: dict[str, Any]) -> None:
        self.metadata, self.separator = metadata, b""

    def begin(self) -> bytes:
        return json.dumps({**self.metadata, "images": []}).encode()[:-2]

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        separator, self.separator = self.separator, b", "
        return separator + json.dumps(_item(image, label, error)).encode()

    def end(self) -> bytes:
        return b"]}"


class EventEncoder:
    """Server-sent events: `start` with the metadata, one `image` per image with its index, `end`.

    The sender may put `progress` and `preview` events between them.
    """

    def __init__(self, count: int, metadata: dict[str, Any]) -> None:
        self.metadata, self.index = {**metadata, "n": count}, 0

    def begin(self) -> bytes:
        return event("start", self.metadata)

    def add(self, image: Images, label: int, error: float | None) -> bytes:
        index, self.index = self.index, self.index + 1
        return event("image", {"index": index, **_item(image, label, error)})

    def end(self) -> bytes:
        return event("end", {})


def event(name: str, data: dict[str, Any]) -> bytes:
    """Encode a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def preview(index: int, image: Images) -> bytes:
    """Encode an event with the current state of an image [28, 28] that is not finished."""
    return event("preview", {"index": index, "png": base64.b64encode(png(image)).decode()})


def _item(image: Images, label: int, error: float | None) -> dict[str, Any]:
    item = {"label": label, "png": base64.b64encode(png(image)).decode()}
    return item if error is None else {**item, "error": error}
