"""`python -m chaos.worker`: the service with the faulty device of `chaos/faulty.py`.

Without arguments it is the supervisor, which is the service's own. The supervisor starts its workers with the same
command and the arguments that `service.server.worker` takes.
"""

import sys

COMMAND = (sys.executable, "-m", "chaos.worker")


def serve() -> int:
    """Run the supervisor until a signal."""
    from service.server import serve
    from service.settings import read_settings
    from service.telemetry import log

    settings = read_settings()
    log.configure(settings)
    return serve.serve(settings, COMMAND)


def work(*arguments: str) -> None:
    """Run one worker."""
    # Not imported at the top: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported, and the supervisor
    # sets that variable first.
    from chaos.faulty import Faulty
    from service.server import worker

    worker.main(*arguments, runner=Faulty)


if __name__ == "__main__":
    if sys.argv[1:]:
        work(*sys.argv[1:])
    else:
        sys.exit(serve())
