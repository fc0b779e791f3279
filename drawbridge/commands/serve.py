"""`drawbridge serve`: the service."""

from collections.abc import Sequence

from drawbridge.commands.parsing import Parser
from drawbridge.commands.settings import read_environment
from service.auth import keys
from service.server import serve
from service.telemetry import log


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    description = "Serve the models. Settings are environment variables DRAWBRIDGE_*; docs/deployment.md lists them."
    Parser(prog="drawbridge serve", description=description).parse_args(arguments)
    settings = read_environment()
    if settings.keys is not None:
        keys.read(settings.keys)  # a mistake in the file is better reported before a worker starts
    log.configure(settings)
    return serve.serve(settings)
