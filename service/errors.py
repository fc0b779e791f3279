"""Problems: one exception class per kind of error that a client can meet (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from pydantic import ValidationError

MEDIA_TYPE = "application/problem+json"
POISON_REQUEST = "two workers crashed while running this request; it is not retried"


class Problem(Exception):
    """An error that is sent to the client as `application/problem+json`.

    `detail` says what is wrong and what to do; `extra` are members of the document that a program may read.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "problem"
    """Its name in the document's URN, in metrics and in the log. Programs rely on it, so it never changes."""
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.extra = detail, headers or {}, extra

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"urn:drawbridge:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }

    def raw_response(self) -> bytes:
        """A whole HTTP/1.1 response that closes its connection, for errors that no ASGI application sees."""
        body = json.dumps(self.body()).encode()
        return raw_head(self.status, {**self.headers, "Content-Type": MEDIA_TYPE}, len(body)) + body


class Unauthorized(Problem):
    status, kind, title = 401, "unauthorized", "No valid key"


class UnknownModel(Problem):
    status, kind, title = 404, "unknown-model", "No such model"


class NoIndex(Problem):
    status, kind, title = 404, "no-index", "No index of the training images"


class NotFound(Problem):
    status, kind, title = 404, "not-found", "Not found"


class MethodNotAllowed(Problem):
    status, kind, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(Problem):
    status, kind, title = 406, "not-acceptable", "No acceptable format"


class BadRequest(Problem):
    status, kind, title = 400, "bad-request", "Malformed request"


class HeadersTooSlow(Problem):
    status, kind, title = 408, "head-too-slow", "Headers too slow"


class HeadersTooLarge(Problem):
    status, kind, title = 431, "head-too-large", "Headers too large"


class BodyTooSlow(Problem):
    status, kind, title = 408, "body-too-slow", "Body too slow"


class BodyTooLarge(Problem):
    status, kind, title = 413, "body-too-large", "Body too large"


class UnsupportedBody(Problem):
    status, kind, title = 415, "unsupported-body", "Unsupported body"


class InvalidParameter(Problem):
    status, kind, title = 422, "invalid-parameter", "Invalid parameter"


class QuotaExceeded(Problem):
    status, kind, title = 429, "quota-used-up", "Quota exceeded"


class QueueIsFull(Problem):
    status, kind, title = 429, "queue-is-full", "Queue full"


class GenerationFailed(Problem):
    status, kind, title = 500, "draw-failed", "Generation failed"


class TimedOut(Problem):
    status, kind, title = 504, "too-late", "Deadline exceeded"


class Unavailable(Problem):
    status, kind, title = 503, "unavailable", "Unavailable"


def raw_head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    """The line and headers of an HTTP/1.1 response with a body of `length` bytes, which closes its connection."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {length}", "Connection: close", "", ""]).encode()


def describe(error: ValidationError) -> str:
    """All errors of a validation in one line, each with the place it is about."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
