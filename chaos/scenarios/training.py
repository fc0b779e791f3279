"""Training: runs and exports killed at random moments, and a full disk.

The scenario runs `python -m training` in processes that are forked from one that has imported everything, so that
kills interrupt the work and not the imports.
"""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from chaos.scenario import Line, Setting
from models import store
from training import checkpoint
from training.cli import main
from training.config import CONFIG, RunConfig
from training.export import export
from training.log import LINES

FORKS = multiprocessing.get_context("forkserver")
FLAGS = (
    "gan",
    "--data",
    "digits",
    "--size",
    "28",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--batch",
    "32",
    "--every",
    "200",
)
CONCURRENT_RUNS = 2
MAX_KILL_DELAY = 2.0
"""Seconds within which a run is killed, or from which on its next checkpoint is awaited. A run takes about three."""
TIMEOUT = 120.0
"""Seconds after which a process counts as one that hangs."""
FREE_BYTES = (0, 4096, 100_000, 3_000_000, 6_500_000)
"""Free space on a full disk: from less than a line of the log to a little less than another checkpoint."""
TRACEBACK = re.compile("Traceback|Exception")
"""Must not be in the output. A thread that is interrupted by the exit prints `Exception` alone."""
DISK_BYTES = 64 * 2**20
NAME = "gan"


def run(setting: Setting) -> Iterator[Line]:
    FORKS.set_forkserver_preload(["training.cli", "sklearn.datasets", "torch._dynamo"])
    epochs, kills, exports = (1, 4, 2) if setting.quick else (4, 50, 20)
    fit = ("fit", *FLAGS, "--epochs", str(epochs))
    reference = setting.root / "reference"
    status, output = run_training(*fit, "--run", str(reference), out=setting.root / "out")
    if status != 0:
        raise RuntimeError(f"the uninterrupted run ended with {status}: {output}")
    yield from killed_runs(setting, fit, reference, kills)
    yield from full_disks(setting, fit, reference)
    yield from killed_exports(setting, reference, exports)


def killed_runs(setting: Setting, fit: tuple[str, ...], reference: Path, kills: int) -> Iterator[Line]:
    """Kill runs and restart them with the same command until they have been killed `kills` times."""
    series = [KilledRuns(setting.root / f"runs{i}", fit, reference, setting.seed + i) for i in range(CONCURRENT_RUNS)]
    with ThreadPoolExecutor(CONCURRENT_RUNS) as pool:
        list(pool.map(KilledRuns.run, series, [kills // CONCURRENT_RUNS] * CONCURRENT_RUNS))
    counts = sum((each.counts for each in series), Counter[str]())
    figures = f"{counts['in a write']} during a checkpoint, {counts['before the first']} before the first one"
    few = counts["in a write"] < kills // 5  # too few to show much
    yield Line("kill -9 of a training run", counts["kills"], counts["unreadable"] + few, figures)
    figures = "by the same command; weights, optimizers, random states and metrics equal the uninterrupted run's"
    yield Line("runs resumed and completed", counts["completed"], counts["different"], figures)


class KilledRuns:
    """Runs in `root`, one after the other, each killed and resumed."""

    def __init__(self, root: Path, fit: tuple[str, ...], reference: Path, seed: int) -> None:
        self.root, self.fit, self.reference, self.source = root, fit, reference, random.Random(seed)
        self.counts = Counter[str]()
        root.mkdir()

    def run(self, kills: int) -> None:
        """Kill `kills` times and let the last run complete."""
        while self.counts["kills"] < kills or not self.counts["completed"]:
            path = self.root / str(self.counts["completed"])
            process = start_training(*self.fit, "--run", str(path), out=path.with_suffix(".out"))
            if self.counts["kills"] < kills and self._kill(process, path):
                continue
            process.join(TIMEOUT)
            self.counts["completed"] += 1
            self.counts["different"] += process.exitcode != 0 or not same_result(path, self.reference)
            process.kill()

    def _kill(self, process: BaseProcess, path: Path) -> bool:
        """Kill a run at a random moment, or in the first write of a checkpoint after it.

        Returns False if the run had ended before that.
        """
        files = [path / f".{name}.new" for name in (checkpoint.LATEST, checkpoint.BEST)]
        before = [inode(file) for file in files]
        time.sleep(self.source.uniform(0.0, MAX_KILL_DELAY))
        if self.source.random() < 0.6:
            while process.is_alive() and [inode(file) for file in files] in (before, [None, None]):
                time.sleep(0.0002)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return False
        self.counts["kills"] += 1
        self.counts["in a write"] += [inode(file) for file in files] not in (before, [None, None])
        self.counts["before the first"] += not (path / checkpoint.LATEST).exists()
        self.counts["unreadable"] += not readable(path)
        return True


def full_disks(setting: Setting, fit: tuple[str, ...], reference: Path) -> Iterator[Line]:
    """Fill the disk during training, then make room again and resume."""
    errors, sizes, kinds = list[str](), FREE_BYTES[2:3] if setting.quick else FREE_BYTES, set[str]()
    for free in sizes:
        with mounted_disk(setting.root / f"disk{free}") as disk:
            path = disk.path / "run"
            train = partial(run_training, *fit, "--run", str(path), out=setting.root / "out")
            started, _ = train("--max-minutes", "0.01")
            before = checkpoint.load(path / checkpoint.LATEST)["images"]
            status, output = train(limit=disk.leave(free))
            kept = readable(path) and checkpoint.load(path / checkpoint.LATEST)["images"] >= before
            clear = status == 1 and output.splitlines()[-1].startswith("error: ") and not TRACEBACK.search(output)
            disk.leave(DISK_BYTES)
            resumed, _ = train()
            if (started, resumed) != (0, 0) or not (kept and clear and same_result(path, reference)):
                errors.append(f"{free:,}: {started}, {status}, {resumed}, {output[-300:]}")
            kinds.add("a file system of its own" if disk.mounted else "files of limited size")
    figures = f"{', '.join(f'{free:,}' for free in sizes)} bytes free on {', '.join(kinds)}: one line, exit status 1, "
    figures += "the last checkpoint is readable and was resumed"
    yield Line("full disk during training", len(sizes), len(errors), "; ".join([figures, *errors]))


def killed_exports(setting: Setting, reference: Path, exports: int) -> Iterator[Line]:
    """Kill exports that replace existing weights, at random moments or while they write."""
    source, counts = random.Random(setting.seed), Counter[str]()
    weights = setting.root / "weights"
    digests = {export(reference, weights / NAME, which, {}, None).digest for which in ("best", "latest")}
    new = weights / f".{NAME}.new"
    while counts["kills"] < exports:
        which = ("best", "latest")[counts["kills"] % 2]
        process = start_training("export", str(reference), "--name", NAME, "--weights", str(weights),
                                 "--checkpoint", which, out=setting.root / "out")  # fmt: skip
        before = inode(new)
        while process.is_alive() and inode(new) in (before, None):
            time.sleep(0.0002)
        time.sleep(source.uniform(0, 0.006))
        process.kill()
        process.join()
        counts["kills"] += 1
        counts["in time"] += process.exitcode == -signal.SIGKILL
        counts["errors"] += process.exitcode not in (0, -signal.SIGKILL)
        counts["errors"] += store.list_weights(weights) != [NAME] or store.load(weights / NAME)[1].digest not in digests
    figures = f"{counts['in time']} before it ended; the old or the new weights are in place"
    yield Line("kill -9 of an export", counts["kills"], counts["errors"], figures)


def readable(path: Path) -> bool:
    """Return whether every file of a run can be read to its end."""
    try:
        for name in (checkpoint.LATEST, checkpoint.BEST):
            if (path / name).exists():
                checkpoint.load(path / name)
        if (path / CONFIG).exists():
            RunConfig.read(path / CONFIG)
        for grid in (path / "grids").glob("*.png"):
            with Image.open(grid) as image:
                image.load()
    except Exception:
        return False
    return True


def same_result(path: Path, reference: Path) -> bool:
    """Return whether two runs ended with the same state, except for the time taken, and logged the same metrics."""
    state, expected = (checkpoint.load(run / checkpoint.LATEST) for run in (path, reference))
    for each in (state, expected):
        del each["seconds"]
    return equal(state, expected) and sample_distances(path) == sample_distances(reference)


def equal(first: Any, second: Any) -> bool:
    """Return whether two trees of tensors and values are equal to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def sample_distances(path: Path) -> list[tuple[int, float]]:
    """Return the sample distances in a run's log, in order."""
    entries = map(json.loads, (path / LINES).read_text().splitlines())
    return [(entry["images"], entry["sample_distance"]) for entry in entries if "sample_distance" in entry]


class Disk:
    """A small tmpfs at `path`. Where it cannot be mounted, processes must limit the size of their files instead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        command = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path))
        self.mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def leave(self, free: int) -> int | None:
        """Leave `free` bytes on the disk. Returns the limit on the size of files if it is not mounted, else None."""
        if not self.mounted:
            return free
        size = shutil.disk_usage(self.path).used + free
        subprocess.run(("mount", "-o", f"remount,size={size}", str(self.path)), check=True)
        return None


@contextmanager
def mounted_disk(path: Path) -> Iterator[Disk]:
    """Mount a disk at `path` until the block ends."""
    disk = Disk(path)
    try:
        yield disk
    finally:
        if disk.mounted:
            subprocess.run(("umount", str(path)), check=True)


def inode(path: Path) -> int | None:
    """Return the inode of a file, which changes when it is replaced, or None if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def run_training(*arguments: str, out: Path, limit: int | None = None) -> tuple[int | None, str]:
    """Run `python -m training` and return its exit status and its output."""
    process = start_training(*arguments, out=out, limit=limit)
    process.join(TIMEOUT)
    process.kill()
    return process.exitcode, out.read_text()


def start_training(*arguments: str, out: Path, limit: int | None = None) -> BaseProcess:
    """Start `python -m training`. Its output goes to `out`, and no file may be larger than `limit` bytes."""
    process = FORKS.Process(target=_command, args=(arguments, out, limit), daemon=True)
    process.start()
    return process


def _command(arguments: tuple[str, ...], out: Path, limit: int | None) -> None:
    tqdm.set_lock(threading.RLock())  # a kill would leave its default lock, which processes share, locked
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(arguments))
