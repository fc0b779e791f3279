"""Raw connections that are slow, oversized or ambiguous, and the responses that are allowed to them."""

import re
import socket
import time
import urllib.parse
from dataclasses import dataclass

LIMITS = {"header_timeout": 1, "body_timeout": 1, "write_timeout": 2, "keep_alive_timeout": 2, "max_body_bytes": 2**20}
"""The service's settings under which the responses below are allowed."""
MAX_SECONDS = 8.0
"""How long a connection may stay open: longer than all of these timeouts together."""


@dataclass(frozen=True)
class RawExchange:
    """Bytes that a connection sends, and the statuses that may come back."""

    name: str
    sent: bytes
    """Sent at once."""
    allowed: tuple[int, ...]
    """Allowed statuses. 0 is a connection that the service closes without a response."""
    trickle: bytes = b""
    """Sent every tenth of a second after that, until the service closes the connection."""


HOST = b"Host: x\r\n"
POST = b"POST /generate HTTP/1.1\r\n" + HOST
GET = b"GET /livez HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
CHUNK = b"10000\r\n" + b" " * 2**16 + b"\r\n"
METRIC = b"drawbridge_requests_total"
"""Occurs in the response to GET /metrics only."""
EXCHANGES = (
    RawExchange("no bytes", b"", (0,)),
    RawExchange("a slow head", b"GET /livez HTTP/1.1\r\n", (408,), b"X-A: b\r\n"),
    RawExchange("a slow body", POST + JSON_TYPE + b"Content-Length: 1000\r\n\r\n{", (408,), b" "),
    RawExchange("a slow body of a GET", GET + b"Content-Length: 100000\r\n\r\n", (200, 408), b" "),
    RawExchange("slow chunks of a GET", GET + CHUNKED + b"\r\n", (200, 408), b"1\r\nx\r\n"),
    RawExchange("endless trailers", GET + CHUNKED + b"\r\n0\r\n", (200, 400, 408, 431), b"X: y\r\n" * 99),
    RawExchange("an endless chunk extension", POST + JSON_TYPE + CHUNKED + b"\r\n1;", (400, 408, 413), b"a" * 9999),
    RawExchange("a body over the limit", POST + JSON_TYPE + b"Content-Length: 999999999\r\n\r\n", (413,)),
    RawExchange("chunks over the limit", POST + JSON_TYPE + CHUNKED + b"\r\n" + CHUNK * 17, (413,), CHUNK),
    RawExchange("a header of 40 kB", GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n", (431,)),
    RawExchange("10,000 headers", GET + b"A: b\r\n" * 10_000 + b"\r\n", (431,)),
    RawExchange("1,000 headers", GET + CLOSE + b"A: b\r\n" * 1000 + b"\r\n", (200,)),
    RawExchange("a URL of 40 kB", b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", (431,)),
    RawExchange(
        "2,000 form fields",
        POST
        + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n\r\n"
        + (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 2000)[:90000],
        (400, 422),
    ),
    RawExchange("two lengths", POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", (400,)),
    RawExchange("a length and chunks", POST + b"Content-Length: 1\r\n" + CHUNKED + b"\r\n0\r\n\r\n", (400,)),
    RawExchange("chunks and a length", POST + CHUNKED + b"Content-Length: 1\r\n\r\n0\r\n\r\n", (400,)),
    RawExchange("chunked is not the last coding", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n", (400,)),
    RawExchange("a negative length", POST + b"Content-Length: -1\r\n\r\n", (400,)),
    RawExchange("a length of more than 64 bits", POST + b"Content-Length: 99999999999999999999999\r\n\r\n", (400, 413)),
    RawExchange("a space before a colon", POST + b"Content-Length : 0\r\n\r\n", (400,)),
    RawExchange("a folded header", GET + b"X-A: b\r\n c\r\n\r\n", (400,)),
    RawExchange("a header with a NUL", GET + b"X-A: \0\r\n\r\n", (400,)),
    RawExchange("bare line feeds", b"GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n", (200, 400)),
    RawExchange("no HTTP version", b"GET /livez\r\n\r\n", (200, 400)),
    RawExchange("an unknown HTTP version", b"GET /livez HTTP/9.9\r\n\r\n", (400, 505)),
    RawExchange("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    RawExchange("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", (400,)),
    RawExchange("an absolute URI", b"GET http://x/livez HTTP/1.1\r\n" + CLOSE + HOST + b"\r\n", (200,)),
    RawExchange("CONNECT", b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n", (400, 404, 405)),
    RawExchange("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + CLOSE + HOST + b"\r\n", (400, 404, 405)),
    RawExchange(
        "a web socket",
        GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        (200, 400, 426),
    ),
    RawExchange(
        "an upgrade to HTTP/2",
        GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        (200, 400),
    ),
    RawExchange("an unknown method", b"BREW /generate HTTP/1.1\r\n" + HOST + b"\r\n", (400, 405)),
    RawExchange("a path that is not ASCII", b"GET /\xff\xfe HTTP/1.1\r\n" + CLOSE + HOST + b"\r\n", (400, 404)),
    RawExchange("100 pipelined requests", (GET + b"\r\n") * 99 + GET + CLOSE + b"\r\n", (200,)),
    RawExchange(
        "a request inside a body",
        POST + CLOSE + b"Content-Length: 38\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n    ",
        (415,),
    ),
    RawExchange(
        "a large response", b"POST /generate?model=cgan&n=64&format=json HTTP/1.1\r\n" + HOST + b"\r\n", (200,)
    ),
)


def run_exchange(url: str, exchange: RawExchange, max_seconds: float = MAX_SECONDS) -> int | str:
    """Return the status of the first response, 0 if there is none, or text that says what is wrong."""
    address, received, deadline = urllib.parse.urlsplit(url), b"", time.monotonic() + max_seconds
    with socket.create_connection((address.hostname, address.port or 80), timeout=max_seconds) as connection:
        try:
            connection.sendall(exchange.sent)
            connection.settimeout(0.1)
            while time.monotonic() < deadline:
                try:
                    data = connection.recv(65536)
                except TimeoutError:
                    connection.sendall(exchange.trickle)
                    continue
                received += data
                if not data:
                    break
            else:
                return f"still open after {max_seconds:g} s, received {received[:40]!r}"
        except OSError:  # the service closed the connection while this side was sending
            pass
    if b"Traceback" in received or METRIC in received:
        return "the response contains a traceback or the metrics"
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", received)
    return int(status[1]) if status else 0
