"""Everything that can be wrong with a request: one class a kind, each an RFC 9457 problem with a status of its own."""

from typing import Any, ClassVar

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Answered as problem+json. `detail` says what to do; `extra` are members that a program may read."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.extra = detail, headers or {}, extra

    @property
    def kind(self) -> str:
        """The class's name as a URN has it: `queue-is-full`."""
        return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in type(self).__name__)[1:]

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"urn:drawbridge:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }


class Unauthorized(Problem):
    status, title = 401, "No key"


class UnknownModel(Problem):
    status, title = 404, "No such model"


class NotFound(Problem):
    status, title = 404, "Not found"


class MethodNotAllowed(Problem):
    status, title = 405, "Method not allowed"


class NotAcceptable(Problem):
    status, title = 406, "No format that you accept"


class BadRequest(Problem):
    status, title = 400, "No request"


class HeadTooSlow(Problem):
    status, title = 408, "Head too slow"


class HeadTooLarge(Problem):
    status, title = 431, "Head too large"


class BodyTooSlow(Problem):
    status, title = 408, "Body too slow"


class BodyTooLarge(Problem):
    status, title = 413, "Body too large"


class UnsupportedBody(Problem):
    status, title = 415, "Unsupported kind of body"


class InvalidParameter(Problem):
    status, title = 422, "Invalid parameter"


class QuotaExceeded(Problem):
    status, title = 429, "Quota used up"


class QueueIsFull(Problem):
    status, title = 429, "Too many images waiting"


class DrawFailed(Problem):
    status, title = 500, "Could not be drawn"


class TooLate(Problem):
    status, title = 504, "Not drawn in time"


class Unavailable(Problem):
    status, title = 503, "Not available now"
