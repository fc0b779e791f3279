"""What a request was: gathered while it is answered; for its caller's headers, the log, metrics and traces."""

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
from service.engine.request import Ticket

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What a caller may call a request; any other name is replaced, and so is what may be a key."""
KEY = KEY_PREFIX.encode()
PROBE_PATHS = ("/livez", "/readyz", "/metrics")
"""What watchers ask for every few seconds."""
IDS = map(f"{secrets.token_hex(4)}{{:08x}}".format, itertools.count())
"""Names for requests that come without one: this process's, which is random, with a number."""


@dataclass(slots=True)
class RequestContext:
    """One HTTP request. Times are seconds of `time.perf_counter`, which is the engine's clock too."""

    id: str
    method: str
    started_at: float
    root: str
    """Under which path the application is mounted, by Ray Serve or a proxy; "" where it has all of them."""
    path: str
    """What is asked for below that."""
    client: str
    """The address that asks; "" where there is none."""
    traceparent: str = ""
    lease: QuotaLease | None = None
    """With which key it came in."""
    route: str = "other"
    """Template of its path; one of few, whatever callers ask for."""
    model: str = ""
    digest: str = ""
    """Of the weights."""
    seed: int | None = None
    ticket: Ticket | None = None
    encoding_started_at: float | None = None
    encoding_seconds: float = 0.0
    """Seconds spent on making files of images."""
    status: int = 0
    problem: str = ""
    """What was wrong, by the name of its kind."""
    finished_at: float = 0.0

    @contextmanager
    def time_encoding(self) -> Iterator[None]:
        """For the time that goes into a file, or a part of it."""
        begun = time.perf_counter()
        self.encoding_started_at = self.encoding_started_at or begun
        try:
            yield
        finally:
            self.encoding_seconds += time.perf_counter() - begun

    def spans(self) -> list[tuple[str, float, float]]:
        """The parts of it that are known by now, each with the time it began and its seconds."""
        ticket, found = self.ticket, []
        if ticket is not None and ticket.started_at is not None:
            found.append(("queue", ticket.accepted_at, ticket.started_at - ticket.accepted_at))
            if ticket.finished_at is not None:
                found.append(("device", ticket.started_at, ticket.finished_at - ticket.started_at))
        if self.encoding_started_at is not None:
            found.append(("encode", self.encoding_started_at, self.encoding_seconds))
        return found

    def client_disconnected(self) -> None:
        """Its caller hung up: nobody reads this status; the log does."""
        self.status, self.problem = 499, "client-gone"

    @property
    def owner(self) -> str:
        """Whose it is among those who share the device: its key's, else its address's."""
        return self.client if self.lease is None else self.lease.key.name

    @property
    def is_probe(self) -> bool:
        """Whether a watcher asked."""
        return self.route in PROBE_PATHS

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """What every answer says besides its own."""
        yield b"x-request-id", self.id.encode()
        yield b"x-content-type-options", b"nosniff"
        if self.lease is not None:
            yield from self.lease.headers()
        if spans := self.spans():
            yield b"server-timing", ", ".join([f"{name};dur={1e3 * took:.2f}" for name, _, took in spans]).encode()

    def log_fields(self) -> dict[str, Any]:
        """Its line in the log. Of what a caller wrote there are only words that are known here, and numbers."""
        ticket = self.ticket
        told: dict[str, Any] = {
            "request_id": self.id, "method": self.method, "route": self.route, "status": self.status,
            "ms": round(1e3 * (self.finished_at - self.started_at), 2),
        }  # fmt: skip
        told |= {f"{name}_ms": round(1e3 * seconds, 2) for name, _, seconds in self.spans()}
        if self.lease is not None:
            told["key"] = self.lease.key.name
        told |= {"model": self.model, "digest": self.digest[:12]} if self.model else {}
        if self.seed is not None:
            told["seed"] = self.seed
        if ticket is not None:
            told |= {"images": len(ticket.images), "batch": ticket.max_batch_seen, "ended": ticket.outcome}
        return told | ({"problem": self.problem} if self.problem else {})


def begin(scope: Scope) -> RequestContext:
    """A call for an HTTP `scope`, which from now on has it with it."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and f"{path}/".startswith(f"{root}/"):  # a proxy may have taken it off, and Starlette asks likewise
        path = path[len(root) :] or "/"
    client = scope["client"][0] if scope.get("client") else ""
    call = RequestContext("", scope["method"], time.perf_counter(), root, path, client)
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value) and KEY not in value:
            call.id = value.decode()
        elif name == b"traceparent":
            call.traceparent = value.decode("latin-1")
    call.id = call.id or next(IDS)
    scope["call"] = call
    return call


def of(connection: HTTPConnection) -> RequestContext:
    """The call that belongs to a request."""
    call: RequestContext = connection.scope["call"]
    return call
