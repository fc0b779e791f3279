"""`drawbridge serve`: the service."""

import socket
from collections.abc import Callable, Mapping, Sequence

from drawbridge.commands.parsing import Parser, requires_extra
from drawbridge.commands.settings import read_environment
from service.auth import keys
from service.server import serve
from service.telemetry import log


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    description = "Serve the models. Settings are environment variables DRAWBRIDGE_*; docs/deployment.md lists them."
    parser = Parser(prog="drawbridge serve", description=description)
    parser.add_argument(
        "--class",
        dest="for_class",
        action="store_true",
        help="serve a class: listen on the local network, without keys, with lower limits per request; print the "
        "address and a QR code",
    )
    if not parser.parse_args(arguments).for_class:
        return _serve({}, serve.ignore_listener)
    with requires_extra("serve", "serve --class"):
        from drawbridge.commands import classroom
    return _serve(classroom.defaults(), classroom.announce)


def _serve(defaults: Mapping[str, str], on_listen: Callable[[socket.socket], None]) -> int:
    settings = read_environment(defaults)
    if settings.keys is not None:
        keys.read(settings.keys)  # a mistake in the file is better reported before a worker starts
    log.configure(settings)
    return serve.serve(settings, on_listen=on_listen)
