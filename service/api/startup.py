"""Answers to probes while no worker can give them, at the start or after the last worker died.

The supervisor calls this, so it must not import torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from service.errors import MEDIA_TYPE, UnknownModel, raw_head

END_OF_HEADERS = b"\r\n\r\n"


@dataclass(frozen=True)
class StartupProbes:
    """Answers /livez, /readyz and /metrics like a worker without models.

    `names` returns the names of the weights. `metrics` renders the metrics; None leaves them to the workers.
    """

    names: Callable[[], Sequence[str]]
    metrics: Callable[[], bytes] | None

    def respond(self, head: bytes) -> bytes | None:
        """The whole response to the request that begins with `head`; None if only a worker can answer it."""
        line, _, _ = head.partition(b"\r\n")
        parts = line.decode("latin-1").split(" ")
        if END_OF_HEADERS not in head or len(parts) != 3 or parts[0] not in ("GET", "HEAD"):
            return None
        path, _, query = parts[1].partition("?")
        if path == "/livez":
            status, kind, body = 200, "application/json", b'{"status":"alive"}'
        elif path == "/readyz":
            status, kind, body = self._readyz(parse_qs(query, keep_blank_values=True).get("model"))
        elif path == "/metrics" and self.metrics is not None:
            status, kind, body = 200, "text/plain; version=1.0.0; charset=utf-8", self.metrics()
        else:
            return None
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return raw_head(status, headers, len(body)) + (body if parts[0] == "GET" else b"")

    def _readyz(self, asked: list[str] | None) -> tuple[int, str, bytes]:
        names = self.names()
        if asked is not None:
            name = asked[-1].partition("@")[0]
            if name not in names:
                detail = f"no model {name!r}; available models: {', '.join(names)}"
                problem = {**UnknownModel(detail, models=list(names)).body(), "instance": "/readyz"}
                return 404, MEDIA_TYPE, json.dumps(problem).encode()
            names = [asked[-1]]
        body = {"status": "not ready", "models": dict.fromkeys(names, "loading"), "broken": {}}
        return 503, "application/json", json.dumps(body, separators=(",", ":")).encode()
