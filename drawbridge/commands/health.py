"""`drawbridge health`: whether the service is ready."""

import sys
from collections.abc import Sequence

import httpx

from drawbridge.commands.parsing import Parser
from drawbridge.commands.settings import read_environment

TIMEOUT = 10.0
"""Seconds."""


def main(arguments: Sequence[str]) -> int:
    """Print what /readyz responds. Returns 0 if the service is ready, else 1."""
    description = "Check the service that the same settings start: exit status 0 if it is ready, else 1."
    Parser(prog="drawbridge health", description=description).parse_args(arguments)
    settings = read_environment()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    port = settings.admin_port or settings.port
    try:
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/readyz"
        response = httpx.get(url, timeout=TIMEOUT, trust_env=False)  # no proxy: the service runs on this machine
    except httpx.TransportError as error:
        print(f"error: no service responds at port {port}: {error}", file=sys.stderr)
        return 1
    print(response.text)
    return 0 if response.is_success else 1
