"""Several runs at once, each in a process of its own, some of them at a time and the others in a queue."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

from training.interrupts import EXIT_INTERRUPTED, restored_handlers, sigint_blocked
from training.progress import Display, Progress, table

POLL_SECONDS = 0.5
DONE, OUT_OF_TIME, STOPPED, FAILED = "done", "time limit", "stopped", "failed"
"""How a run ended."""


def shares(count: int, cores: int, jobs: int | None, threads: int | None, *, on_cpu: bool) -> tuple[int, int]:
    """How many of `count` runs go on at a time, and the CPU threads of each, so that all cores are used.

    `jobs` and `threads` are the numbers that were asked for, if any. On a GPU all runs go on at once.
    """
    at_once = min(count, jobs or (max(1, cores // (threads or 1)) if on_cpu else count))
    return at_once, threads or max(1, cores // at_once)


@dataclass(frozen=True)
class Job:
    """A run: its progress, and the function that does it in a new process and returns the exit status."""

    progress: Progress
    main: Callable[[], int]
    """It must be picklable."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that the process has beside those of this one."""


def run_all(jobs: Sequence[Job], at_once: int) -> int:
    """Run `jobs` in their order, `at_once` at a time; show their progress, and a table at the end.

    A run that fails does not stop the others. The first SIGINT, SIGTERM or SIGHUP lets every run save and stop, and
    starts no more; the second one ends them at once. Returns 1 if a run failed, 130 after a signal, otherwise 0.
    """
    waiting, running = list(jobs), list[Process]()
    with tempfile.TemporaryDirectory() as outputs, signals() as received, Display(sys.stderr) as display:
        try:
            sent = 0
            while running or (waiting and not received):
                while waiting and len(running) < at_once and not received:
                    running.append(Process(waiting.pop(0), Path(outputs)))
                wait([process.sentinel for process in running], POLL_SECONDS)
                if len(received) > sent:
                    if not sent:
                        display.write(f"{received[0]}: every run saves and stops; the same command resumes all of them")
                    sent = len(received)
                    for process in running:
                        process.terminate()
                for process in [*running]:
                    if process.ended(interrupted=bool(received)):
                        running.remove(process)
                        for line in process.error.splitlines():
                            display.write(f"{process.progress.name}: {line}")
                    display.show(process.progress)
        finally:
            for process in running:  # none, unless this process cannot go on
                process.terminate()
    print(table([job.progress for job in jobs]), flush=True)
    if any(job.progress.status == FAILED for job in jobs):
        return 1
    return EXIT_INTERRUPTED if received else 0


class Process:
    """The process of a job, from its start on."""

    def __init__(self, job: Job, outputs: Path) -> None:
        self.progress = job.progress
        self.progress.started_at, self.progress.status = time.time(), "running"
        self.error = ""
        """What a run that failed wrote to standard error."""
        self._output = outputs / job.progress.name
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_main, args=(job, self._output))
        with sigint_blocked():  # also in the new process, until it has left the group that Ctrl-C is sent to
            self._process.start()
        self.sentinel = self._process.sentinel

    def terminate(self) -> None:
        """Send SIGTERM, if the process still runs."""
        self._process.terminate()

    def ended(self, *, interrupted: bool) -> bool:
        """Update the progress, and return whether the process has ended; `interrupted`: this one sent it a signal."""
        alive = self._process.is_alive()  # first, so that the last lines of its log are read, too
        self.progress.read()
        if alive:
            return False
        code = self._process.exitcode
        self.progress.ended_at = time.time()
        if code == 0:
            finished = self.progress.images >= self.progress.total_images
            self.progress.status = DONE if finished else OUT_OF_TIME
        elif interrupted and code in (EXIT_INTERRUPTED, -signal.SIGTERM):
            self.progress.status = STOPPED
        else:
            self.progress.status = FAILED
            written = self._output.read_text(errors="replace").strip() if self._output.exists() else ""
            self.error = written or f"error: ended by {_cause(code)}; run the same command to resume"
        return True


@contextmanager
def signals() -> Iterator[list[str]]:
    """The names of the signals to stop that arrive within the block, in which they do not end this process."""
    received: list[str] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` sets it
        numbers.append(signal.SIGHUP)

    def on_signal(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    with restored_handlers(*numbers):
        for number in numbers:
            signal.signal(number, on_signal)
        yield received


def _main(job: Job, output: Path) -> None:
    """What the process of a job does. Its errors go to `output`; what it prints, and its bars, nowhere."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # away from Ctrl-C: the first process sends the signal, so that it comes once
    os.environ.update(job.environment, TQDM_DISABLE="1")
    for number, target in ((1, Path(os.devnull)), (2, output)):
        with target.open("wb") as file:
            os.dup2(file.fileno(), number)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        status = job.main()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    sys.exit(status)


def _stop_with_parent() -> None:
    """When the first process is gone without having ended this one, let this one save and stop."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _cause(code: int | None) -> str:
    """`SIGKILL` or `exit status 3`."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
