"""The progress of runs in other processes: read from their logs, shown as one line each, and summed up in a table."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 30.0
"""Time between two lines of progress of a run, where the stream is not a terminal."""
TAIL = 4096
"""Bytes at the end of a log that hold its last lines."""
COLUMNS = ("family", "minutes", "images/s", "last figures", "run", "status")


@dataclass
class Progress:
    """How far one run has come. `read` takes it from the log, whose lines before `started_at` are older."""

    name: str
    run: Path
    log: Path
    """A file with one JSON object per line: `images`, `time`, and figures by name."""
    total_images: int
    """0 for a run in closed form."""
    started_at: float | None = None
    """Seconds since 1970; None before the run starts."""
    ended_at: float | None = None
    images: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """The last value of each figure."""
    status: str = "not started"
    _first: tuple[float, int] | None = None
    _last: tuple[float, int] | None = None

    def read(self) -> None:
        """Take images, times and figures from the last lines of the log."""
        for entry in _last_entries(self.log):
            self.images = entry["images"]
            self.figures |= {
                name: value for name, value in entry.items() if name not in ("images", "time") and value is not None
            }
            if self.started_at is not None and entry["time"] >= self.started_at:
                self._last = (entry["time"], entry["images"])
                self._first = self._first or self._last

    @property
    def images_per_second(self) -> float | None:
        """Images per second from the first to the last line since the start; None before there are two."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    @property
    def minutes(self) -> float:
        """Minutes that the run's process has taken, or took."""
        if self.started_at is None:
            return 0.0
        return ((self.ended_at or time.time()) - self.started_at) / 60

    @property
    def figures_text(self) -> str:
        """The last losses and the last distance of samples to the data, in one line."""
        names = [name for name in self.figures if name.rpartition(".")[2] == "loss"]
        names += [name for name in self.figures if name == "sample_distance"]
        return ", ".join(f"{name} {self.figures[name]:.4g}" for name in names)


class Display:
    """Shows progress on a stream: on a terminal as one bar per run, otherwise as lines at intervals.

    A context manager; at its end the bars stay where they are.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.bars: dict[str, Any] | None = {} if stream.isatty() else None
        self.written_at: dict[str, float] = {}

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in (self.bars or {}).values():
            bar.close()

    def show(self, progress: Progress) -> None:
        """Show `progress`: as a line only after an interval, and when the run ends."""
        if self.bars is not None:
            if progress.name not in self.bars:
                self.bars[progress.name] = self._bar(progress, len(self.bars))
            bar = self.bars[progress.name]
            bar.n = progress.images
            bar.set_postfix_str(progress.status if progress.ended_at else progress.figures_text, refresh=False)
            bar.refresh()
        elif progress.ended_at:
            self.write(f"{progress.name}: {progress.status}, {progress.minutes:.1f} min")
        else:
            now = time.monotonic()
            if now - self.written_at.setdefault(progress.name, now) >= LINE_SECONDS:
                self.written_at[progress.name] = now
                self.write(f"{progress.name}: {_line(progress)}")

    def write(self, line: str) -> None:
        """Write a line of text, above the bars if there are any."""
        if self.bars is None:
            print(line, file=self.stream, flush=True)
        else:
            tqdm.write(line, file=self.stream)

    def _bar(self, progress: Progress, position: int) -> Any:
        return tqdm(
            total=progress.total_images or None,
            desc=f"{progress.name:13}",
            unit="img",
            unit_scale=True,
            position=position,
            file=self.stream,
            dynamic_ncols=True,
        )


def table(runs: Sequence[Progress]) -> str:
    """One line per run, below the titles of the columns."""
    rows = [COLUMNS] + [
        (
            run.name,
            f"{run.minutes:.1f}" if run.started_at else "",
            f"{rate:,.0f}" if (rate := run.images_per_second) is not None else "",
            run.figures_text,
            str(run.run),
            run.status,
        )
        for run in runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if title in ("minutes", "images/s") else text.ljust(width)
            for text, width, title in zip(row, widths, COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    )


def _line(progress: Progress) -> str:
    """Images, speed and figures of a run that goes on."""
    if not progress.total_images:
        return f"{progress.minutes:.1f} min"
    parts = [f"{progress.images:,} of {progress.total_images:,} images"]
    if (rate := progress.images_per_second) is not None:
        parts.append(f"{rate:,.0f} images/s")
    return ", ".join([*parts, *([progress.figures_text] if progress.figures else [])])


def _last_entries(log: Path) -> list[dict[str, Any]]:
    """The entries of the last lines of a log; of one that is being written, without an incomplete line."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off at its beginning or its end
            continue
        if isinstance(entry, dict) and "images" in entry and "time" in entry:
            entries.append(entry)
    return entries
