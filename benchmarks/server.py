"""A service process of a benchmark's own, on a free port of the loopback."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(**settings: object) -> Iterator[tuple[str, int]]:
    """The URL and process of `python -m service` with DRAWBRIDGE_* `settings`, which ends with the block.

    Its log goes into a file: a pipe would have to be read by the process that measures.
    """
    environment = os.environ | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=ROOT,
            env=environment | {"DRAWBRIDGE_PORT": "0"},
            stderr=log.fileno(),
        )
        try:
            while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", Path(log.name).read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"the service did not start:\n{Path(log.name).read_text()}")
                time.sleep(0.1)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)
