"""Listening sockets."""

import os
import socket

from service.settings import Settings

LISTEN_BACKLOG = 2048


def create_listeners(settings: Settings) -> tuple[socket.socket, socket.socket | None]:
    """Listen on the main and, if there is one, the admin port. Raises OSError whose text names the port."""
    main = _listener(settings.host, settings.port)
    return main, None if settings.admin_port is None else _listener(settings.host, settings.admin_port)


def address(listener: socket.socket) -> str:
    """Host and port as a URL spells them."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot listen on {host} port {port}: {reason}") from None
    listener.setblocking(False)
    return listener
