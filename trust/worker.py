"""`python -m trust.worker`: the service on a device that misbehaves.

The front is the service's own. It starts its workers by the same command with its end of a socket pair and what else
`service.worker` takes.
"""

import sys

from service import front, log, worker
from service.settings import read
from trust.faulty import Faulty

COMMAND = (sys.executable, "-m", "trust.worker")


def serve() -> int:
    """The front, until a signal."""
    settings = read()
    log.configure(settings)
    return front.serve(settings, COMMAND)


if __name__ == "__main__":
    if sys.argv[1:]:
        worker.main(*sys.argv[1:], runner=Faulty)
    else:
        sys.exit(serve())
