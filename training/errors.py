"""The exit statuses of commands, and errors in one line."""

import sys
from collections.abc import Callable

from models.families import UnknownFamily
from models.film import FilmError
from models.locks import Locked
from models.store import WeightsError
from training import files
from training.checkpoint import NotFinite
from training.config import ConfigError
from training.data import DataError
from training.pool import ProcessKilled


def report_errors(run: Callable[[], int]) -> int:
    """The exit status of `run`, which raises the errors of a command, or that of its error.

    An invalid flag or configuration, or a file that cannot be read or written, prints one line and gives 2. A full
    disk, a loss that is not finite, or a process that was killed, prints one line and gives 1.
    """
    try:
        return run()
    except (ConfigError, DataError, UnknownFamily, WeightsError, FilmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Locked as error:
        print(f"error: {error}; wait until it ends, or name another --run", file=sys.stderr)
        return 2
    except NotFinite as error:
        print(
            f"error: {error}; checkpoints saved before are intact; start another run, with a lower --lr",
            file=sys.stderr,
        )
        return 1
    except ProcessKilled as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {files.explain(error)}", file=sys.stderr)
        return 1 if error.errno in files.DISK_FULL_ERRNOS else 2
