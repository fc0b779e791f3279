"""Problems: stable types, statuses and members."""

import pytest

from service import errors
from service.errors import Problem

KINDS = {
    "bad-request": 400,
    "unauthorized": 401,
    "unknown-model": 404,
    "no-index": 404,
    "not-found": 404,
    "method-not-allowed": 405,
    "not-acceptable": 406,
    "head-too-slow": 408,
    "body-too-slow": 408,
    "body-too-large": 413,
    "unsupported-body": 415,
    "invalid-parameter": 422,
    "quota-used-up": 429,
    "queue-is-full": 429,
    "head-too-large": 431,
    "problem": 500,
    "draw-failed": 500,
    "unavailable": 503,
    "too-late": 504,
}
"""The last part of every problem's type, and its status. Clients rely on both."""


def test_types_and_statuses_of_problems_are_stable() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Problem)]
    assert {kind.kind: kind.status for kind in kinds} == KINDS
    assert len(kinds) == len(KINDS), "two problems have the same type"


@pytest.mark.parametrize("kind", [errors.QueueIsFull, errors.Unavailable, Problem])
def test_the_members_of_a_problem_are_stable(kind: type[Problem]) -> None:
    body = kind("what to do", retry_after=3).body()
    assert body.pop("title")
    type_ = f"urn:drawbridge:problem:{kind.kind}"
    assert body == {"type": type_, "status": kind.status, "detail": "what to do", "retry_after": 3}


def test_a_problem_without_an_asgi_application_is_a_whole_response() -> None:
    problem = errors.Unavailable("retry", headers={"Retry-After": "5"})
    head, _, body = problem.raw_response().partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    assert status == "HTTP/1.1 503 Service Unavailable"
    content = {"Content-Type": "application/problem+json", "Content-Length": str(len(body)), "Connection": "close"}
    assert dict(line.split(": ") for line in headers) == {"Retry-After": "5", **content}
