"""The CPU cores that the process may use. Imports no torch, for processes that start at once."""

import os
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: those of its affinity, and no more than its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):  # no cgroup v2
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
