"""Training: a run killed at random moments, a full disk, an export that is broken off.

What `python -m training` does, in processes that are forked from one which has imported everything: kills fall into the
work, and not into imports.
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
from training.config import RunConfig
from training.export import CONFIG, export
from training.log import LINES

FORKS = multiprocessing.get_context("forkserver")
FLAGS = ("gan", "--data", "digits", "--device", "cpu", "--threads", "1", "--batch", "32", "--every", "200")
AT_ONCE = 2
LATEST_KILL = 2.0
"""Seconds within which a process is killed, or waited for until it writes a checkpoint; a run takes about three."""
PATIENCE = 120.0
"""Seconds after which a process is one that hangs."""
SHORT = (0, 4096, 100_000, 3_000_000, 6_500_000)
"""Bytes that are left on a disk: for no line of the log, up to not quite another checkpoint."""
TRACES = re.compile("Traceback|Exception")
"""What stands beside no promised line; of a thread that the end overtakes there is the second word only."""
ROOM = 64 * 2**20
NAME = "gan"


def run(setting: Setting) -> Iterator[Line]:
    FORKS.set_forkserver_preload(["training.cli", "sklearn.datasets", "torch._dynamo"])
    epochs, kills, exports = (1, 4, 2) if setting.quick else (4, 50, 20)
    fit = ("fit", *FLAGS, "--epochs", str(epochs))
    straight = setting.root / "straight"
    status, said = ended(*fit, "--run", str(straight), out=setting.root / "out")
    if status != 0:
        raise RuntimeError(f"the unbroken run ended with {status}: {said}")
    yield from killed(setting, fit, straight, kills)
    yield from full(setting, fit, straight)
    yield from exported(setting, straight, exports)


def killed(setting: Setting, fit: tuple[str, ...], straight: Path, kills: int) -> Iterator[Line]:
    """Runs that are killed and begun again by the same command, until they have been killed so often."""
    lives = [Lives(setting.root / f"lives{i}", fit, straight, setting.seed + i) for i in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(Lives.live, lives, [kills // AT_ONCE] * AT_ONCE))
    seen = sum((one.seen for one in lives), Counter[str]())
    found = f"{seen['in a write']} while a checkpoint was written, {seen['before any']} before there was one"
    few = seen["in a write"] < kills // 5  # which would show little
    yield Line("kill -9 of a run in training", seen["kills"], seen["halves"] + few, found)
    found = "each by the same command; weights, optimisers, random states and measurements equal the unbroken run's"
    yield Line("runs went on to their end", seen["ends"], seen["others"], found)


class Lives:
    """Runs in `root`, one after the other, killed again and again."""

    def __init__(self, root: Path, fit: tuple[str, ...], straight: Path, seed: int) -> None:
        self.root, self.fit, self.straight, self.source = root, fit, straight, random.Random(seed)
        self.seen = Counter[str]()
        root.mkdir()

    def live(self, kills: int) -> None:
        """Kill so often, and let the last run end."""
        while self.seen["kills"] < kills or not self.seen["ends"]:
            path = self.root / str(self.seen["ends"])
            process = started(*self.fit, "--run", str(path), out=path.with_suffix(".out"))
            if self.seen["kills"] < kills and self._kill(process, path):
                continue
            process.join(PATIENCE)
            self.seen["ends"] += 1
            self.seen["others"] += process.exitcode != 0 or not same(path, self.straight)
            process.kill()

    def _kill(self, process: BaseProcess, path: Path) -> bool:
        """Kill it: at a random moment, or in the next write of a checkpoint after that. False where it was too late."""
        writing = [path / f".{name}.new" for name in (checkpoint.LATEST, checkpoint.BEST)]
        left = [made(file) for file in writing]
        time.sleep(self.source.uniform(0.0, LATEST_KILL))
        if self.source.random() < 0.6:
            while process.is_alive() and [made(file) for file in writing] in (left, [None, None]):
                time.sleep(0.0002)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return False
        self.seen["kills"] += 1
        self.seen["in a write"] += [made(file) for file in writing] not in (left, [None, None])
        self.seen["before any"] += not (path / checkpoint.LATEST).exists()
        self.seen["halves"] += not whole(path)
        return True


def full(setting: Setting, fit: tuple[str, ...], straight: Path) -> Iterator[Line]:
    """Disks that fill up in mid-training, and have room again."""
    wrong, sizes, kinds = list[str](), SHORT[2:3] if setting.quick else SHORT, set[str]()
    for left in sizes:
        with disk(setting.root / f"disk{left}") as room:
            path = room.path / "run"
            more = partial(ended, *fit, "--run", str(path), out=setting.root / "out")
            began, _ = more("--max-minutes", "0.01")
            before = checkpoint.load(path / checkpoint.LATEST)["images"]
            status, said = more(limit=room.leave(left))
            kept = whole(path) and checkpoint.load(path / checkpoint.LATEST)["images"] >= before
            clear = status == 1 and said.splitlines()[-1].startswith("error: ") and not TRACES.search(said)
            room.leave(ROOM)
            went_on, _ = more()
            if (began, went_on) != (0, 0) or not (kept and clear and same(path, straight)):
                wrong.append(f"{left:,}: {began}, {status}, {went_on}, {said[-300:]}")
            kinds.add("a file system of its own" if room.mounted else "bounded files")
    found = f"{', '.join(f'{left:,}' for left in sizes)} bytes left on {', '.join(kinds)}"
    told = "one line, exit status 1, the checkpoint before whole and gone on from"
    yield Line("the disk was full in mid-training", len(sizes), len(wrong), "; ".join([f"{found}: {told}", *wrong]))


def exported(setting: Setting, straight: Path, exports: int) -> Iterator[Line]:
    """Exports over weights that are there, killed at random moments or while they are written."""
    source, seen = random.Random(setting.seed), Counter[str]()
    weights = setting.root / "weights"
    digests = {export(straight, weights / NAME, which, {}, None).digest for which in ("best", "latest")}
    fresh = weights / f".{NAME}.new"
    while seen["kills"] < exports:
        which = ("best", "latest")[seen["kills"] % 2]
        process = started("export", str(straight), "--name", NAME, "--weights", str(weights), "--checkpoint", which,
                          out=setting.root / "out")  # fmt: skip
        left = made(fresh)
        while process.is_alive() and made(fresh) in (left, None):
            time.sleep(0.0002)
        time.sleep(source.uniform(0, 0.006))
        process.kill()
        process.join()
        seen["kills"] += 1
        seen["in the middle"] += process.exitcode == -signal.SIGKILL
        seen["halves"] += process.exitcode not in (0, -signal.SIGKILL)
        seen["halves"] += store.list_weights(weights) != [NAME] or store.load(weights / NAME)[1].digest not in digests
    found = f"{seen['in the middle']} in the middle of it; what is there is the old or the new"
    yield Line("kill -9 of an export", seen["kills"], seen["halves"], found)


def whole(path: Path) -> bool:
    """Whether every file of a run that is there can be read to its end."""
    try:
        for name in (checkpoint.LATEST, checkpoint.BEST):
            if (path / name).exists():
                checkpoint.load(path / name)
        if (path / CONFIG).exists():
            RunConfig.read(path / CONFIG)
        for picture in (path / "grids").glob("*.png"):
            with Image.open(picture) as image:
                image.load()
    except Exception:
        return False
    return True


def same(path: Path, straight: Path) -> bool:
    """Whether two runs ended with the same state, measured the same on the way, and would be exported as the same."""
    one, other = (checkpoint.load(run / checkpoint.LATEST) for run in (path, straight))
    for state in (one, other):
        del state["seconds"]
    return equal(one, other) and measured(path) == measured(straight)


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def measured(path: Path) -> list[tuple[int, float]]:
    """The samples' distances in a run's log, in their order."""
    entries = map(json.loads, (path / LINES).read_text().splitlines())
    return [(entry["images"], entry["sample_distance"]) for entry in entries if "sample_distance" in entry]


class Disk:
    """A file system of its own at `path` where one may be mounted; else processes have to bound their files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        command = ("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(path))
        self.mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def leave(self, left: int) -> int | None:
        """Leave so many bytes. What to bound a process's files by instead, where that cannot be done."""
        if not self.mounted:
            return left
        size = shutil.disk_usage(self.path).used + left
        subprocess.run(("mount", "-o", f"remount,size={size}", str(self.path)), check=True)
        return None


@contextmanager
def disk(path: Path) -> Iterator[Disk]:
    """A disk, until the end of the block."""
    room = Disk(path)
    try:
        yield room
    finally:
        if room.mounted:
            subprocess.run(("umount", str(path)), check=True)


def made(path: Path) -> int | None:
    """What tells one making of a file from another."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def ended(*arguments: str, out: Path, limit: int | None = None) -> tuple[int | None, str]:
    """The exit status of such a process, and what it said."""
    process = started(*arguments, out=out, limit=limit)
    process.join(PATIENCE)
    process.kill()
    return process.exitcode, out.read_text()


def started(*arguments: str, out: Path, limit: int | None = None) -> BaseProcess:
    """`python -m training` with these arguments; `out` has what it says, and no file more than `limit` bytes."""
    process = FORKS.Process(target=_command, args=(arguments, out, limit), daemon=True)
    process.start()
    return process


def _command(arguments: tuple[str, ...], out: Path, limit: int | None) -> None:
    tqdm.set_lock(threading.RLock())  # its own is the system's too, where a kill would leave it
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(arguments))
