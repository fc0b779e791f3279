"""`python -m chaos.worker`: the service on a device that misbehaves.

The front is the service's own. It starts its workers by the same command with its end of a socket pair and what else
`service.server.worker` takes.
"""

import sys

COMMAND = (sys.executable, "-m", "chaos.worker")


def serve() -> int:
    """The front, until a signal."""
    from service.server import serve
    from service.settings import read_settings
    from service.telemetry import log

    settings = read_settings()
    log.configure(settings)
    return serve.serve(settings, COMMAND)


def work(*arguments: str) -> None:
    """One of its workers. Imports are here, since the front decides before its own how processes count together."""
    from chaos.faulty import Faulty
    from service.server import worker

    worker.main(*arguments, runner=Faulty)


if __name__ == "__main__":
    if sys.argv[1:]:
        work(*sys.argv[1:])
    else:
        sys.exit(serve())
