"""A service process of a benchmark's own, on a free port of the loopback."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(**settings: object) -> Iterator[tuple[str, int]]:
    """The URL and process of `python -m service` with DRAWBRIDGE_* `settings`, which ends with the block."""
    environment = os.environ | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment | {"DRAWBRIDGE_PORT": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            break
    else:
        raise SystemExit("the service did not start:\n" + "".join(lines))
    rest = threading.Thread(target=process.stderr.read)
    rest.start()
    try:
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)
        rest.join()
