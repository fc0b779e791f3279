"""What a run says: a progress bar, TensorBoard scalars and grids, and the same as JSON lines."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import scalar
from tqdm import tqdm

from models import store

LINES = "log.jsonl"


class Log:
    """A run's log in `run`; a context manager. Losses are averaged over `interval` images before they are written."""

    def __init__(self, run: Path, goal: int, interval: int) -> None:
        self.run, self.goal, self.interval = run, goal, interval
        self.sums: dict[str, Tensor] = {}
        self.count, self.written = 0, 0
        (run / "grids").mkdir(parents=True, exist_ok=True)
        self.board = Board(run / "tensorboard")
        self.bar = tqdm(
            total=goal,
            unit="img",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def rewind(self, images: int) -> None:
        """Forget what was written after `images`: a run that resumes there will write it again."""
        self.written = images
        self.bar.update(images - self.bar.n)
        path = self.run / LINES
        if path.exists():
            kept = [
                line
                for line in path.read_text().splitlines(keepends=True)
                if _entry(line).get("images", sys.maxsize) <= images
            ]
            store.write_atomic(path, "".join(kept).encode())
        self.board = Board(self.run / "tensorboard", images + 1)

    def progress(self, images: int, terms: dict[str, Tensor]) -> None:
        """One iteration's terms. Reading a number off a GPU waits for it, so that is done once an interval."""
        self.bar.update(min(images, self.goal) - self.bar.n)
        self.sums = {name: self.sums[name] + term if name in self.sums else term for name, term in terms.items()}
        self.count += 1
        if images - self.written < self.interval and images < self.goal:
            return
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count, self.written = {}, 0, images
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()}, refresh=False)
        self._write(images, means)

    def samples(self, images: int, score: float, png: bytes | None) -> None:
        """The samples' distance to the data, and their picture."""
        self._write(images, {"sample_distance": score})
        if png is not None:
            store.write_atomic(self.run / "grids" / f"{images:010d}.png", png)

    def _write(self, images: int, scalars: dict[str, float]) -> None:
        with (self.run / LINES).open("a") as file:
            file.write(json.dumps({"images": images, "time": time.time(), **scalars}) + "\n")
        for name, value in scalars.items():
            self.board.add(images, summary=scalar(name, value))


class Board:
    """What TensorBoard reads, in a new file of `folder`; from step `begin` on, what others there have counts no more.

    TensorBoard's own writer has a thread, which would meet a full disk by itself, and say so whenever it gets to it.
    """

    def __init__(self, folder: Path, begin: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"
        self.add(begin or 0, file_version="brain.Event:2")
        if begin is not None:
            self.add(begin, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **what: Any) -> None:
        """Write an event."""
        with self.path.open("ab") as file:
            RecordWriter(file).write(Event(step=step, wall_time=time.time(), **what).SerializeToString())


def curves(run: Path, points: int = 40) -> dict[str, list[list[float]]]:
    """What the log of `run` holds, thinned: for each scalar at most `points` pairs of images and its mean."""
    path = run / LINES
    if not path.exists():
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        entry = _entry(line)
        for name, value in entry.items():
            if name not in ("images", "time"):
                found.setdefault(name, []).append((entry["images"], value))
    return {name: _thinned(pairs, points) for name, pairs in found.items()}


def _thinned(pairs: list[tuple[int, float]], points: int) -> list[list[float]]:
    """At most `points` of `pairs`, each the last place and the mean value of as many neighbours."""
    size = -(-len(pairs) // points)
    groups = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    return [[group[-1][0], float(f"{sum(value for _, value in group) / len(group):.4g}")] for group in groups]


def _entry(line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:  # the half line of a run that was killed
        return {}
    return entry
