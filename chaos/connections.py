"""What connections may say to do harm, and how they are to be answered."""

import re
import socket
import time
import urllib.parse
from dataclasses import dataclass

LONGEST = 8.0
"""Seconds after which a connection is held by its caller: more than all bounds of a trial together."""


@dataclass(frozen=True)
class RawExchange:
    """What a connection says: at once, then `slowly`, a piece every tenth of a second; and the answers that may be."""

    name: str
    once: bytes
    allowed: tuple[int, ...]
    """Statuses; 0 is a connection that is closed without an answer."""
    slowly: bytes = b""
    """Said again and again, for as long as the other side listens."""


HOST = b"Host: x\r\n"
POST = b"POST /generate HTTP/1.1\r\n" + HOST
GET = b"GET /livez HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
JSON_KIND = b"Content-Type: application/json\r\n"
CHUNK = b"10000\r\n" + b" " * 2**16 + b"\r\n"
SMUGGLED = b"drawbridge_requests_total"
"""What only a request for /metrics is answered with."""
SAID = (
    RawExchange("nothing", b"", (0,)),
    RawExchange("a head in drops", b"GET /livez HTTP/1.1\r\n", (408,), b"X-A: b\r\n"),
    RawExchange("a body in drops", POST + JSON_KIND + b"Content-Length: 1000\r\n\r\n{", (408,), b" "),
    RawExchange("a body in drops that nobody asked for", GET + b"Content-Length: 100000\r\n\r\n", (200, 408), b" "),
    RawExchange("chunks in drops that nobody asked for", GET + CHUNKED + b"\r\n", (200, 408), b"1\r\nx\r\n"),
    RawExchange("trailers without an end", GET + CHUNKED + b"\r\n0\r\n", (200, 400, 408, 431), b"X: y\r\n" * 99),
    RawExchange(
        "a chunk's extension without an end", POST + JSON_KIND + CHUNKED + b"\r\n1;", (400, 408, 413), b"a" * 9999
    ),
    RawExchange("a body beyond the bound", POST + JSON_KIND + b"Content-Length: 999999999\r\n\r\n", (413,)),
    RawExchange("chunks beyond the bound", POST + JSON_KIND + CHUNKED + b"\r\n" + CHUNK * 17, (413,), CHUNK),
    RawExchange("a header of 40 kB", GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n", (431,)),
    RawExchange("10,000 headers", GET + b"A: b\r\n" * 10_000 + b"\r\n", (431,)),
    RawExchange("1,000 headers", GET + b"Connection: close\r\n" + b"A: b\r\n" * 1000 + b"\r\n", (200,)),
    RawExchange("a URL of 40 kB", b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", (431,)),
    RawExchange(
        "2,000 form fields",
        POST
        + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n\r\n"
        + (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 2000)[:90000],
        (400, 422),
    ),
    RawExchange("two lengths", POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", (400,)),
    RawExchange(
        "a length and chunks", POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)
    ),
    RawExchange("chunks and a length", POST + CHUNKED + b"Content-Length: 1\r\n\r\n0\r\n\r\n", (400,)),
    RawExchange("chunks that are not the last coding", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n", (400,)),
    RawExchange("a length that is none", POST + b"Content-Length: -1\r\n\r\n", (400,)),
    RawExchange("a length beyond 64 bits", POST + b"Content-Length: 99999999999999999999999\r\n\r\n", (400, 413)),
    RawExchange("a space before a colon", POST + b"Content-Length : 0\r\n\r\n", (400,)),
    RawExchange("a folded header", GET + b"X-A: b\r\n c\r\n\r\n", (400,)),
    RawExchange("a header with a NUL", GET + b"X-A: \0\r\n\r\n", (400,)),
    RawExchange("bare line feeds", b"GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n", (200, 400)),
    RawExchange("no version", b"GET /livez\r\n\r\n", (200, 400)),
    RawExchange("another version", b"GET /livez HTTP/9.9\r\n\r\n", (400, 505)),
    RawExchange("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    RawExchange("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", (400,)),
    RawExchange("an absolute URI", b"GET http://x/livez HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", (200,)),
    RawExchange("a tunnel", b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n", (400, 404, 405)),
    RawExchange("no path", b"OPTIONS * HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", (400, 404, 405)),
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
    RawExchange("a method that there is not", b"BREW /generate HTTP/1.1\r\n" + HOST + b"\r\n", (400, 405)),
    RawExchange(
        "bytes beyond ASCII in a path", b"GET /\xff\xfe HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", (400, 404)
    ),
    RawExchange("a hundred requests at once", (GET + b"\r\n") * 99 + GET + b"Connection: close\r\n\r\n", (200,)),
    RawExchange(
        "another request in a body",
        POST + b"Connection: close\r\nContent-Length: 40\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n    ",
        (200, 422),
    ),
    RawExchange(
        "an answer that nobody reads",
        b"POST /generate?model=cgan&n=64&format=json HTTP/1.1\r\n" + HOST + b"\r\n",
        (200,),
    ),
)


def spoken(url: str, said: RawExchange) -> int | str:
    """The status of the first answer, 0 for none; or what is wrong with it."""
    at, heard, until = urllib.parse.urlsplit(url), b"", time.monotonic() + LONGEST
    with socket.create_connection((at.hostname, at.port or 80), timeout=LONGEST) as connection:
        try:
            connection.sendall(said.once)
            connection.settimeout(0.1)
            while time.monotonic() < until:
                try:
                    more = connection.recv(65536)
                except TimeoutError:
                    connection.sendall(said.slowly)
                    continue
                heard += more
                if not more:
                    break
            else:
                return f"held for {LONGEST:g} s, after {heard[:40]!r}"
        except OSError:  # closed while it was spoken to
            pass
    if b"Traceback" in heard or SMUGGLED in heard:
        return "told what is nobody's business"
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", heard)
    return int(found[1]) if found else 0
