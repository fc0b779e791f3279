"""`python -m chaos.worker`: the service with the faulty device of `chaos/faulty.py`.

Without arguments it is the supervisor, which is the service's own. The supervisor starts its workers with the same
command and the arguments that `service.server.worker` takes, and its engine processes with `engine` and the arguments
that `service.server.engine_process` takes.
"""

import os
import sys

COMMAND = (sys.executable, "-m", "chaos.worker")
ENGINE = "engine"
"""The first argument of an engine process."""
ENGINES = "CHAOS_ENGINES"
"""The environment variable with the number of GPUs to imitate, each of which has an engine process."""


def serve() -> int:
    """Run the supervisor until a signal."""
    from service.server import serve
    from service.settings import read_settings
    from service.telemetry import log

    settings = read_settings()
    log.configure(settings)
    if ENGINES in os.environ:
        serve.gpu_count = lambda _: int(os.environ[ENGINES])  # type: ignore[assignment]
    return serve.serve(settings, COMMAND, engine_command=(*COMMAND, ENGINE))


def work(*arguments: str) -> None:
    """Run one worker, or one engine process."""
    # Not imported at the top: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported, and the supervisor
    # sets that variable first.
    from chaos.faulty import Faulty
    from service.server import engine_process, worker

    if arguments[0] == ENGINE:
        engine_process.main(*arguments[1:], runner=Faulty)
    else:
        worker.main(*arguments, runner=Faulty)


if __name__ == "__main__":
    if sys.argv[1:]:
        work(*sys.argv[1:])
    else:
        sys.exit(serve())
