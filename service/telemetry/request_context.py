"""What is known about one HTTP request, for its response headers, the log, metrics and traces."""

import itertools
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.auth.authenticator import QuotaLease
from service.auth.keys import KEY_PREFIX
from service.engine.catalog import Model
from service.engine.request import Ticket
from service.errors import Problem

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""A request id that a client may choose. Any other is replaced, and so is one that could contain a key."""
KEY = KEY_PREFIX.encode()
PROBE_PATHS = ("/livez", "/readyz", "/metrics")
"""Paths that monitoring requests every few seconds."""
IDS = map(f"{secrets.token_hex(4)}{{:08x}}".format, itertools.count())
"""Generated request ids: a random prefix per process and a counter."""


@dataclass(slots=True)
class RequestContext:
    """One HTTP request. Times are seconds of `time.perf_counter`, as the engine's are."""

    id: str
    method: str
    started_at: float
    root: str
    """The path that the application is mounted at, by Ray Serve or a proxy; usually empty."""
    path: str
    """The requested path below `root`."""
    client: str
    """The client's address, or an empty string."""
    traceparent: str = ""
    lease: QuotaLease | None = None
    """The quota lease of the request's key."""
    route: str = "other"
    """The template of the path, one of few."""
    model: str = ""
    digest: str = ""
    """Digest of the model's weights."""
    seed: int | None = None
    loaded: Model | None = None
    """The model that stays in memory for this request."""
    ticket: Ticket | None = None
    encoding_started_at: float | None = None
    encoding_seconds: float = 0.0
    """Seconds spent on encoding images into files."""
    status: int = 0
    problem: str = ""
    """The kind of the problem that the response reports."""
    finished_at: float = 0.0

    @contextmanager
    def time_encoding(self) -> Iterator[None]:
        """Add the time that the block takes to the time spent on encoding."""
        started_at = time.perf_counter()
        self.encoding_started_at = self.encoding_started_at or started_at
        try:
            yield
        finally:
            self.encoding_seconds += time.perf_counter() - started_at

    def spans(self) -> list[tuple[str, float, float]]:
        """The phases that are known so far: name, start time, seconds."""
        ticket, spans = self.ticket, []
        if ticket is not None and ticket.started_at is not None:
            spans.append(("queue", ticket.accepted_at, ticket.started_at - ticket.accepted_at))
            if ticket.finished_at is not None:
                spans.append(("device", ticket.started_at, ticket.finished_at - ticket.started_at))
        if self.encoding_started_at is not None:
            spans.append(("encode", self.encoding_started_at, self.encoding_seconds))
        return spans

    def client_disconnected(self) -> None:
        """Record that the client disconnected. Only the log and metrics show this status. Images stay charged."""
        self.status, self.problem = 499, "client-gone"

    def failed(self, problem: Problem) -> None:
        """Record the problem that the request ended with, and refund images that were not delivered.

        The client has not seen this status if the response had started.
        """
        self.status, self.problem = problem.status, problem.kind
        if self.lease is not None:
            self.lease.refund()

    @property
    def owner(self) -> str:
        """The party that shares the device fairly with others: the key's name, or else the address."""
        return self.client if self.lease is None else self.lease.key.name

    @property
    def is_probe(self) -> bool:
        """Whether monitoring made this request."""
        return self.route in PROBE_PATHS

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """The headers that every response gets."""
        yield b"x-request-id", self.id.encode()
        yield b"x-content-type-options", b"nosniff"
        if self.lease is not None:
            yield from self.lease.headers()
        if spans := self.spans():
            timing = [f"{name};dur={1e3 * seconds:.2f}" for name, _, seconds in spans]
            yield b"server-timing", ", ".join(timing).encode()

    def log_fields(self) -> dict[str, Any]:
        """The fields of its log line. None of them holds free text from the client."""
        ticket = self.ticket
        fields: dict[str, Any] = {
            "request_id": self.id, "method": self.method, "route": self.route, "status": self.status,
            "ms": round(1e3 * (self.finished_at - self.started_at), 2),
        }  # fmt: skip
        fields |= {f"{name}_ms": round(1e3 * seconds, 2) for name, _, seconds in self.spans()}
        if self.lease is not None:
            fields["key"] = self.lease.key.name
        fields |= {"model": self.model, "digest": self.digest[:12]} if self.model else {}
        if self.seed is not None:
            fields["seed"] = self.seed
        if ticket is not None:
            fields |= {"images": len(ticket.images), "batch": ticket.max_batch_seen, "ended": ticket.outcome}
        return fields | ({"problem": self.problem} if self.problem else {})


def begin(scope: Scope) -> RequestContext:
    """Create the context of an HTTP `scope` and attach it to the scope."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and f"{path}/".startswith(f"{root}/"):  # a proxy may have removed it already; Starlette checks likewise
        path = path[len(root) :] or "/"
    client = scope["client"][0] if scope.get("client") else ""
    context = RequestContext("", scope["method"], time.perf_counter(), root, path, client)
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value) and KEY not in value:
            context.id = value.decode()
        elif name == b"traceparent":
            context.traceparent = value.decode("latin-1")
    context.id = context.id or next(IDS)
    scope["context"] = context
    return context


def of(connection: HTTPConnection) -> RequestContext:
    """The context of a request."""
    context: RequestContext = connection.scope["context"]
    return context
