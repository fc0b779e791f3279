"""`drawbridge serve --class`: settings for a class on a local network, and the address as a URL and QR code."""

import ipaddress
import os
import shutil
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import segno

from drawbridge import terminal
from service.settings import PREFIX

DEFAULTS = {
    "host": "0.0.0.0",
    "allow_anonymous": "true",
    "max_images": "128",
    "queue_images": "2048",
    "log_level": "warning",
}
"""Settings of a class, unless the environment has others. A log of every request would push the QR code off the screen.

Requests share a model's batch slots by client address, so 128 images per request bound what one client can take.
"""
OUTSIDE = "192.0.2.1"
"""An address reserved for documentation: the route to it is the default route."""
QUIET_ZONE = 4
"""Light modules around a QR code; scanners need them."""


def defaults() -> Mapping[str, str]:
    """`DEFAULTS`; with a file of keys in the environment, clients must send one."""
    if os.environ.get(f"{PREFIX}KEYS"):
        return {name: value for name, value in DEFAULTS.items() if name != "allow_anonymous"}
    return DEFAULTS


def announce(listener: socket.socket) -> None:
    """Print the URLs at which the class reaches `listener`; on a terminal, also the first one as a QR code."""
    host, port = listener.getsockname()[:2]
    first, *others = urls(host, port)
    if sys.stdout.isatty():
        print(qr_code(first, shutil.get_terminal_size().columns))
    print(f"The class opens {first}")
    for url in others:
        print(f"or, on another network of this machine, {url}")
    print("Press Ctrl-C to stop.", flush=True)


def urls(host: str, port: int) -> list[str]:
    """The URLs of a service that listens on `host`: one per address of this machine if `host` is a wildcard."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return [f"http://[{host}]:{port}" if address.version == 6 else f"http://{host}:{port}"]
    return [f"http://{found}:{port}" for found in lan_addresses() or ["127.0.0.1"]]


def lan_addresses() -> list[str]:
    """This machine's IPv4 addresses on its networks, that of the default route first."""
    sources = [_source_address(target) for target in (OUTSIDE, *_routed_networks(), *_host_addresses())]
    return list(dict.fromkeys(source for source in sources if source is not None))


def qr_code(text: str, columns: int) -> str:
    """A QR code of `text` as half blocks with their own colours, so that it is dark on light on any terminal.

    Empty if it does not fit into `columns`.
    """
    modules = segno.make(text, error="m", boost_error=False, micro=False).matrix_iter(border=QUIET_ZONE)
    rows = [[b"\x00" if dark else b"\xff" for dark in row] for row in modules]
    return terminal.render([rows], columns) if len(rows) <= columns else ""


def _source_address(target: str) -> str | None:
    """The address from which this machine sends to `target`, or None if no other machine can reach it there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))  # a datagram socket's connect only looks up the route: nothing is sent
        except OSError:
            return None
        source = ipaddress.ip_address(probe.getsockname()[0])
    return None if source.is_loopback or source.is_link_local or source.is_unspecified else str(source)


def _routed_networks(table: Path = Path("/proc/net/route")) -> Iterator[str]:
    """The first address of each network in Linux's routing table."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:  # another system
        return
    for line in lines:
        packed = struct.pack("=I", int(line.split()[1], 16))  # in the machine's byte order
        yield str(ipaddress.IPv4Address(packed) + 1)


def _host_addresses() -> list[str]:
    """The addresses of this machine's host name: on macOS and Windows those of all interfaces."""
    try:
        return socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        return []
