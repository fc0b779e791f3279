"""Runs for the tests of `training.jobs`, which new processes import: without torch, so that they start quickly."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def log_line(folder: Path, images: int, **figures: float) -> None:
    """Append a line to the log of the run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"images": images, "time": time.time(), **figures}) + "\n")


def finish(folder: Path, images: int) -> int:
    """Train on `images` images, half a second long."""
    log_line(folder, 0, loss=2.0)
    time.sleep(0.5)
    log_line(folder, images, loss=1.0)
    return 0


def refuse() -> int:
    """Fail as a command does."""
    print("printed, and shown nowhere")
    print("error: --width: use a multiple of 16", file=sys.stderr)
    return 2


def vanish() -> int:
    """End as the kernel ends a process that needs too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def until_signal(folder: Path, patient: bool = True) -> int:
    """Train until SIGTERM, then write how many signals came to `signals`; `patient`: only one is expected."""
    received = []

    def on_signal(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        (folder / "received").touch()
        if len(received) > 1:
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    log_line(folder, 1, loss=1.0)
    while not received or not patient:
        time.sleep(0.01)
    time.sleep(0.3)  # for a second signal, which must not come
    (folder / "signals").write_text(" ".join(received))
    return 130
