"""Names of folders for classes, whose own names may hold any letters."""

import re
import unicodedata
from collections.abc import Sequence

MAX_BYTES = 200
"""In UTF-8; file systems take 255, and part of them stores accents as characters of their own."""
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]')
"""Characters that Windows or Unix does not take, and surrogates, which UTF-8 has no bytes for."""
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?|\d+\.png", re.IGNORECASE | re.DOTALL)
"""Devices of Windows, and the names of images, which may be beside the folders."""


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for each class, as close to the class's own as every common file system allows.

    The names are distinct also where case and the form of accents do not count.
    """
    names, taken = list[str](), set[str]()
    for name in map(_safe, classes):
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name} ({number})", number + 1
        names.append(unique)
        taken.add(unique.casefold())
    return names


def _safe(name: str) -> str:
    """A name without what file systems forbid: some characters and words, a dot or space at an end, a great length."""
    name = FORBIDDEN.sub("_", unicodedata.normalize("NFC", name)).strip(" ")
    name = name.encode()[:MAX_BYTES].decode(errors="ignore").rstrip(" ")
    name = re.sub(r"^\.|\.$", "_", name) or "_"
    return f"{name}_" if RESERVED.fullmatch(name) else name
