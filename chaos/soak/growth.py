"""Growth of what a process uses over time: its slope with an interval, and the bound that it must stay below."""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from harness.background import background

BLOCKS = 20
"""Means over which a slope is fitted. Samples that follow each other are correlated; means of blocks much less."""
WARM_UP_SHARE = 0.1
"""Share of the run that does not count: caches fill, and every kind of reload happens for the first time."""
CONFIDENCE = 0.95
MEGABYTE = 2**20


@dataclass
class Series:
    """Samples of one quantity over time."""

    name: str
    unit: str
    """It follows a number, as in " MB"."""
    per_hour: float
    """Growth per hour that a long run allows."""
    in_all: float
    """Growth that a shorter run allows in all, until what the process keeps has reached its size."""
    times: list[float] = field(default_factory=list)
    """Seconds since the start."""
    values: list[float] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return self.times[-1] / 3600 if self.times else 0.0

    @property
    def allowed(self) -> float:
        """The bound on the growth per hour."""
        return max(self.per_hour, self.in_all / self.hours)

    def slope(self) -> tuple[float, float]:
        """Return the growth per hour by least squares, and half of its 95 % interval.

        The interval is that of a line through the means of BLOCKS blocks of equal numbers of samples.
        """
        first = int(WARM_UP_SHARE * len(self.times))
        times = [block.mean() for block in np.array_split(np.array(self.times[first:]), BLOCKS) if block.size]
        values = [block.mean() for block in np.array_split(np.array(self.values[first:]), BLOCKS) if block.size]
        if len(times) < 3:
            return 0.0, math.inf
        if np.ptp(values) == 0:  # its interval would be NaN
            return 0.0, 0.0
        line = stats.linregress(np.array(times) / 3600, values)
        return float(line.slope), float(line.stderr * stats.t.ppf((1 + CONFIDENCE) / 2, len(times) - 2))

    def exceeded(self) -> bool:
        """Return whether the samples do not show that the growth is below the bound."""
        slope, half = self.slope()
        return not slope + half <= self.allowed

    def describe(self) -> str:
        slope, half = self.slope()
        return (
            f"{self.values[0]:,.0f}{self.unit} first, {self.values[-1]:,.0f}{self.unit} last, at most "
            f"{max(self.values):,.0f}{self.unit}: {slope:+,.2f} ± {half:,.2f}{self.unit} per hour, "
            f"{self.allowed:,.1f} allowed"
        )


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process, pages that it shares included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


@contextmanager
def sampled_memory(pids: dict[int, Series], start: float, interval: float) -> Iterator[None]:
    """Sample the memory of processes into their series until the block ends. `start` is in `time.monotonic()`."""

    def sample(stopped: threading.Event) -> None:
        while not stopped.wait(interval):
            for pid, series in pids.items():
                try:
                    megabytes = resident_megabytes(pid)
                except OSError:  # the process has ended, which another check reports
                    continue
                series.times.append(time.monotonic() - start)
                series.values.append(megabytes)

    with background(sample):
        yield
