"""A service process of a test's own, on a free port of the loopback."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(**settings: object) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DRAWBRIDGE_")}
    return clean | {f"DRAWBRIDGE_{name.upper()}": str(value) for name, value in settings.items()}


class Server:
    """A `python -m service` of its own and what it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))
        # Read on, so that the pipe never fills.
        self.reader = threading.Thread(target=lambda: self.lines.extend(process.stderr or ()))
        self.reader.start()


@contextmanager
def serving(weights: Path, **settings: object) -> Iterator[Server]:
    settings = {"weights": weights, "port": 0, "device": "cpu", "seats": 8, "workers": 1} | settings
    with running([sys.executable, "-m", "service"], environment(**settings)) as server:
        yield server


@contextmanager
def running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that `command` starts, ended after it."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        server = Server(process)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)
        server.reader.join()
        assert process.stderr is not None
        process.stderr.close()
