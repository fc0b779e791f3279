"""The playground's files in memory, at addresses that name their version.

A page refers to its files as `playground/VERSION/NAME`, where VERSION is a digest of all files. Scripts refer to each
other by relative addresses, which then have the version too. So browsers keep these files without asking again, and get
the new ones when a file has changed.
"""

import gzip
import hashlib
import re
from functools import cached_property
from mimetypes import guess_type
from pathlib import Path

from fastapi import Response
from starlette.types import Scope

from service.api.responses import IMMUTABLE, Headers, RawResponse, is_not_modified

PAGES = {"/": "index.html", "/lab/live": "lab/live.html"}
"""The pages' files by path."""
VERSION = re.compile(r"^[0-9a-f]{16}/")
"""A version at the start of an address below /playground/."""
LINK = re.compile(r'(?<=")((?:\.\./)?playground/)')
"""The part of a page's link that the version follows."""
ABOUT_CONTENT = (b"content-encoding", b"content-length", b"content-type")
"""Headers that a response without content does not have."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""The pages load nothing from other hosts and run no inline scripts."""


class File:
    """A file with the headers of its responses, as it is and compressed."""

    def __init__(self, name: str, content: bytes, cache_control: str) -> None:
        media_type = guess_type(name)[0] or "application/octet-stream"
        if media_type.startswith("text/"):
            media_type += "; charset=utf-8"
        fields = {"Content-Type": media_type, "Cache-Control": cache_control, "Vary": "Accept-Encoding"}
        self.headers = [(key.lower().encode(), value.encode()) for key, value in (fields | SECURITY_HEADERS).items()]
        self.content = content

    @cached_property
    def plain(self) -> tuple[bytes, Headers]:
        """The file, and the headers of the response with it."""
        return self.content, self._headers(self.content)

    @cached_property
    def compressed(self) -> tuple[bytes, Headers]:
        """The file compressed, and the headers of the response with it."""
        content = gzip.compress(self.content, mtime=0)
        return content, [*self._headers(content), (b"content-encoding", b"gzip")]

    def _headers(self, content: bytes) -> Headers:
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return [*self.headers, (b"etag", etag.encode()), (b"content-length", b"%d" % len(content))]

    def respond(self, scope: Scope) -> Response:
        """The response to a GET: compressed if the client takes that, and without the file if the client has it."""
        content, headers = self.compressed if accepts_gzip(scope) else self.plain
        if is_not_modified(scope, headers):
            return RawResponse(b"", [field for field in headers if field[0] not in ABOUT_CONTENT], 304)
        return RawResponse(content, headers)


class PlaygroundFiles:
    """The files of a directory. They are read again when one has changed and a page is requested."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.modified: dict[Path, int] = {}
        """When each file, and each directory, was modified."""
        self._read()

    def __contains__(self, path: str) -> bool:
        """Whether a page or a file of the current version is at a path below the application's root."""
        return path in self.files

    def find(self, path: str) -> File | None:
        """The page, or the file of the current version, at a path below the application's root."""
        if path in PAGES and self._changed():
            self._read()
        return self.files.get(path)

    def _changed(self) -> bool:
        try:
            return any(path.stat().st_mtime_ns != modified for path, modified in self.modified.items())
        except FileNotFoundError:
            return True

    def _read(self) -> None:
        paths = sorted(self.directory.rglob("*"))
        self.modified = {path: path.stat().st_mtime_ns for path in (self.directory, *paths)}
        contents = {path.relative_to(self.directory).as_posix(): path.read_bytes() for path in paths if path.is_file()}
        version = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()[:16]
        self.files = {
            f"/playground/{version}/{name}": File(name, content, f"public, {IMMUTABLE}")
            for name, content in contents.items()
        }
        for path, name in PAGES.items():
            self.files[path] = File(name, LINK.sub(rf"\g<1>{version}/", contents[name].decode()).encode(), "no-cache")


def accepts_gzip(scope: Scope) -> bool:
    """Whether the Accept-Encoding header lists gzip (RFC 9110, 12.5.3)."""
    for name, value in scope["headers"]:
        if name == b"accept-encoding":
            for item in value.lower().split(b","):
                coding, _, weight = item.replace(b" ", b"").partition(b";q=")
                if coding == b"gzip":
                    return bool(weight.strip(b"0.")) or not weight
    return False
