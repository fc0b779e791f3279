"""The log of a run: a progress bar, TensorBoard scalars, the same scalars as JSON lines, and sample grids."""

import json
import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import scalar
from tqdm import tqdm

from models import store
from training import files, film
from training.checkpoint import NotFinite
from training.transfer import HostCopy

LINES = "log.jsonl"


@dataclass(frozen=True)
class _Interval:
    """The sums of the loss terms of `count` iterations, on their way from the device."""

    images: int
    count: int
    names: tuple[str, ...]
    sums: HostCopy


class Log:
    """The log in the directory `run`; a context manager. Losses are averaged over `interval` images."""

    def __init__(self, run: Path, total_images: int, interval: int) -> None:
        self.run, self.total_images, self.interval = run, total_images, interval
        self.sums: dict[str, Tensor] = {}
        self.count, self.written = 0, 0
        self.pending: deque[_Interval] = deque()
        """Those whose lines are not yet written."""
        files.require_writable(run / "grids")
        files.require_writable(run / film.FRAMES)
        self.board = TensorBoardWriter(run / "tensorboard")
        self.bar = tqdm(
            total=total_images,
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
        """Discard lines and events after `images`, where a run resumes and will write them again."""
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
        self.board = TensorBoardWriter(self.run / "tensorboard", images + 1)

    def progress(self, images: int, terms: dict[str, Tensor]) -> None:
        """Add the loss terms of one iteration.

        They are summed on the device. The sums of an interval are copied to the host, and a later call writes their
        line as soon as the copy is there, so that nothing waits for a GPU. Raises NotFinite if a loss of a line was not
        finite.
        """
        self.bar.update(min(images, self.total_images) - self.bar.n)
        sums = torch._foreach_add([*self.sums.values()], [*terms.values()]) if self.sums else terms.values()
        self.sums = dict(zip(terms, sums, strict=True))
        self.count += 1
        if images - self.written >= self.interval or images >= self.total_images:
            totals = HostCopy(torch.stack([*self.sums.values()]))
            self.pending.append(_Interval(images, self.count, tuple(self.sums), totals))
            self.sums, self.count, self.written = {}, 0, images
        while self.pending and self.pending[0].sums.is_ready():
            self._write_means(self.pending.popleft())

    def flush(self) -> None:
        """Write the lines of all intervals that have ended. Raises NotFinite as `progress` does."""
        while self.pending:
            self._write_means(self.pending.popleft())

    def _write_means(self, interval: _Interval) -> None:
        totals = interval.sums.result().tolist()
        means = {name: total / interval.count for name, total in zip(interval.names, totals, strict=True)}
        for name, value in means.items():
            if name.rpartition(".")[2] == "loss" and not math.isfinite(value):
                raise NotFinite(f"{name} is {value} after {interval.images} images")
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()}, refresh=False)
        self._write(interval.images, means)

    def samples(self, images: int, score: float, png: bytes | None) -> None:
        """Write the samples' distance to the data, and their grid."""
        self._write(images, {"sample_distance": score})
        if png is not None:
            store.write_atomic(self.run / "grids" / f"{images:010d}.png", png)

    def frame(self, updates: int, png: bytes) -> None:
        """Write a frame of the run's film."""
        store.write_atomic(self.run / film.FRAMES / f"{updates:010d}.png", png)

    def _write(self, images: int, scalars: dict[str, float]) -> None:
        # JSON has no numbers for infinity and NaN.
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with (self.run / LINES).open("a") as file:
            file.write(json.dumps({"images": images, "time": time.time(), **numbers}, allow_nan=False) + "\n")
        for name, value in scalars.items():
            self.board.add(images, summary=scalar(name, value))


class TensorBoardWriter:
    """Writes events into a new file of `folder`. TensorBoard discards older files' events from `first_step` on.

    TensorBoard's own writer uses a thread, in which the error of a full disk would not reach the run.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"
        self.add(first_step or 0, file_version="brain.Event:2")
        if first_step is not None:
            self.add(first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **fields: Any) -> None:
        """Append one event."""
        with self.path.open("ab") as file:
            RecordWriter(file).write(Event(step=step, wall_time=time.time(), **fields).SerializeToString())


def curves(run: Path, points: int = 40) -> dict[str, list[list[float]]]:
    """The scalars in the log of `run`: for each name at most `points` pairs of images seen and mean value."""
    path = run / LINES
    if not path.exists():
        return {}
    series: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        entry = _entry(line)
        for name, value in entry.items():
            if name not in ("images", "time") and value is not None and math.isfinite(value):
                series.setdefault(name, []).append((entry["images"], value))
    return {name: _thin(pairs, points) for name, pairs in series.items()}


def _thin(pairs: list[tuple[int, float]], points: int) -> list[list[float]]:
    """At most `points` pairs: groups of neighbours, each as its last image count and its mean value."""
    size = -(-len(pairs) // points)
    groups = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    return [[group[-1][0], float(f"{sum(value for _, value in group) / len(group):.4g}")] for group in groups]


def _entry(line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:  # the last line of a run that was killed may be incomplete
        return {}
    return entry
