"""Several runs at once: the queue, failures, signals, and what is shown."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from harness.server import ROOT, environment
from models import devices
from tests.training import runs
from training import checkpoint, cli, fitting, jobs, progress
from training.jobs import Job
from training.progress import Display, Progress


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that a run replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def job(folder: Path, main: Callable[[], int], total_images: int = 100) -> Job:
    return Job(Progress(folder.name, folder, folder / "log.jsonl", total_images), main)


def finishing(folder: Path, images: int = 100) -> Job:
    return job(folder, functools.partial(runs.finish, folder, images))


def until_signal(folder: Path, patient: bool = True) -> Job:
    return job(folder, functools.partial(runs.until_signal, folder, patient))


def wait_for(*paths: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.02)


def statuses(table: str) -> dict[str, str]:
    """The status of each run in a table, which begins with the titles."""
    return {line.split()[0]: re.split(r"\s{2,}", line)[-1] for line in table.splitlines()[1:]}


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    queue = [
        job(tmp_path / "refused", runs.refuse),
        job(tmp_path / "killed", runs.vanish),
        finishing(tmp_path / "short", images=40),
        finishing(tmp_path / "whole"),
    ]
    assert jobs.run_all(queue, 2) == 1
    out, err = capfd.readouterr()
    assert statuses(out) == {"refused": "failed", "killed": "failed", "short": "time limit", "whole": "done"}
    assert "refused: error: --width: use a multiple of 16\n" in err
    assert "killed: error: ended by SIGKILL; run the same command to resume\n" in err
    assert "shown nowhere" not in out + err
    (whole,) = (line for line in out.splitlines() if line.startswith("whole"))
    _, _, speed, *figures, run, _ = whole.split()
    assert (figures, run) == (["loss", "1"], str(tmp_path / "whole"))
    assert 100 < float(speed) < 201  # 100 images in half a second


def test_no_more_runs_go_on_at_a_time_than_were_asked_for(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    assert jobs.run_all([finishing(folder) for folder in folders], 2) == 0
    spans = [
        [json.loads(line)["time"] for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders
    ]
    for start, _ in spans:
        assert sum(other[0] <= start < other[1] for other in spans) <= 2
    assert min(spans[2][0], spans[3][0]) > max(spans[0][0], spans[1][0])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_every_run_and_starts_no_more(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number, folders = signal.Signals[name], [tmp_path / letter for letter in "abc"]

    def send() -> None:
        wait_for(*(folder / "log.jsonl" for folder in folders[:2]))
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=send)
    thread.start()
    assert jobs.run_all([until_signal(folder) for folder in folders], 2) == 130
    thread.join()
    assert signal.getsignal(number) is before
    out, err = capfd.readouterr()
    assert statuses(out) == {"a": "stopped", "b": "stopped", "c": "not started"}
    assert f"{name}: every run saves and stops; the same command resumes all of them\n" in err
    assert not (tmp_path / "c").exists()


STARTED = """
import functools, sys
from pathlib import Path
from tests.training import runs
from training import jobs
from training.progress import Progress
if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[2:]]
    queue = [
        jobs.Job(
            Progress(folder.name, folder, folder / "log.jsonl", 100),
            functools.partial(runs.until_signal, folder, sys.argv[1] == "patient"),
        )
        for folder in folders
    ]
    sys.exit(jobs.run_all(queue, len(queue)))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts runs a and b, which train until a signal, from a process in a group of its own."""
    script = tmp_path / "script.py"
    script.write_text(STARTED)
    started = []

    def start(kind: str) -> "subprocess.Popen[str]":
        folders = [str(tmp_path / "a"), str(tmp_path / "b")]
        command = [sys.executable, str(script), kind, *folders]
        variables = {**environment(), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, env=variables, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        wait_for(*(tmp_path / name / "log.jsonl" for name in "ab"))
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_ctrl_c_in_a_terminal_reaches_every_run_once(
    start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = start("patient")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert statuses(out) == {"a": "stopped", "b": "stopped"}
    assert [(tmp_path / name / "signals").read_text() for name in "ab"] == ["SIGTERM", "SIGTERM"]


def test_a_second_ctrl_c_ends_runs_that_are_still_saving(
    start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = start("impatient")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "every run saves" in process.stderr.readline()
    wait_for(*(tmp_path / name / "received" for name in "ab"))  # two signals at the same moment may come as one
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert statuses(out) == {"a": "stopped", "b": "stopped"}


def test_runs_save_and_stop_when_the_process_that_started_them_is_killed(
    start: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    start("patient").kill()
    wait_for(*(tmp_path / name / "signals" for name in "ab"))


@pytest.mark.parametrize(
    ("count", "cores", "asked", "threads", "on_cpu", "expected"),
    [
        (14, 8, None, None, True, (8, 1)),
        (3, 8, None, None, True, (3, 2)),
        (14, 8, None, 4, True, (2, 4)),
        (14, 8, None, 16, True, (1, 16)),
        (14, 8, 4, None, True, (4, 2)),
        (3, 2, 5, None, True, (3, 1)),
        (11, 16, None, None, False, (11, 1)),
        (4, 16, None, None, False, (4, 4)),
        (11, 16, 2, None, False, (2, 8)),
    ],
)
def test_runs_share_all_cores_and_on_a_gpu_go_on_at_once(
    count: int, cores: int, asked: int | None, threads: int | None, on_cpu: bool, expected: tuple[int, int]
) -> None:
    assert jobs.shares(count, cores, asked, threads, on_cpu=on_cpu) == expected


def test_progress_is_that_of_the_last_lines_of_the_log(tmp_path: Path) -> None:
    run = Progress("gan", tmp_path, tmp_path / "log.jsonl", 1000)
    run.read()
    assert (run.images, run.images_per_second) == (0, None)
    run.started_at = 100.0
    lines = [{"images": i, "time": 50.0, "loss": float(i)} for i in range(500)]
    lines += [
        {"images": 600, "time": 101.0, "generator.loss": 0.5, "D(x)": 0.7},
        {"images": 700, "time": 103.0, "generator.loss": 0.25, "D(x)": None},
        {"images": 700, "time": 103.0, "sample_distance": 0.125},
    ]
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 9')
    run.read()
    assert (run.images, run.images_per_second) == (700, 50.0)
    assert run.figures_text == "loss 499, generator.loss 0.25, sample_distance 0.125"


def shown(stream: io.StringIO) -> str:
    with Display(stream) as display:
        for name in ("gan", "vae"):
            run = Progress(name, Path(name), Path(name), 1000, started_at=time.time(), images=250)
            run.figures = {"loss": 0.5}
            display.show(run)
            display.show(run)
            run.ended_at, run.status = time.time(), "done"
            display.show(run)
    return stream.getvalue()


def test_without_a_terminal_a_run_has_a_line_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO()) == "gan: done, 0.0 min\nvae: done, 0.0 min\n"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert shown(io.StringIO()).splitlines()[:2] == ["gan: 250 of 1,000 images, loss 0.5"] * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_run_has_a_bar() -> None:
    frames = re.split(r"\r|\n|\x1b\[A", shown(Terminal()))
    for name in ("gan", "vae"):
        bars = [frame for frame in frames if frame.startswith(name)]
        assert "25%" in bars[-1]
        assert "done" in bars[-1]


def queued(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Sequence[Job], int]:
    """What `fit` with these arguments would run, and how many at a time."""
    calls: list[tuple[Sequence[Job], int]] = []
    monkeypatch.setattr(jobs, "run_all", lambda queue, at_once: calls.append((queue, at_once)) or 0)
    assert cli.main(["fit", *arguments, "--data", "digits"]) == 0
    return calls[0]


def test_of_runs_that_wait_for_each_other_the_longest_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, at_once = queued(monkeypatch, "pca", "gan", "ddpm", "--jobs", "2", "--device", "cpu")
    assert ([each.progress.name for each in queue], at_once) == (["ddpm", "gan", "pca"], 2)
    assert [each.progress.total_images for each in queue] == [12 * 1497, 200 * 1497, 0]


def test_runs_are_dealt_to_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setenv(devices.VISIBLE_GPUS, "3,5")
    queue, at_once = queued(monkeypatch, "gan", "vae", "ae")
    assert [each.environment[devices.VISIBLE_GPUS] for each in queue] == ["3", "5", "3"]
    assert at_once == 3


def test_all_stands_for_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, _ = queued(monkeypatch, "all", "--jobs", "20", "--device", "cpu", "--seed", "4")
    assert sorted(each.progress.name for each in queue) == cli.families.names()
    assert {each.main.args[0].seed for each in queue} == {4}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gan", "nope"], "unknown family 'nope'; available: acgan"),
        (["gan", "vae", "pca", "--epochs", "1"], "--epochs: pca cannot use it; name only families that can: gan vae"),
        (["gan", "vae", "--colour", "1"], "unrecognized arguments: --colour"),
        (["gan", "vae", "--batch", "many"], "invalid int value"),
        (["gan", "vae", "--run", "x"], "--run: each family has a run directory of its own, runs/FAMILY"),
        (["gan", "vae", "--jobs", "0"], "--jobs: use at least 1"),
        (["gan", "--jobs", "0"], "--jobs: use at least 1"),
        (["gan", "vae", "--data", "nowhere"], "'nowhere' is neither a data set nor a folder"),
        (["gan", "vae", "--seed", "1", "ae"], "unrecognized arguments: ae"),
    ],
)
def test_a_mistake_is_one_line_before_any_run_starts(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_torchrun_trains_one_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert cli.main(["fit", "gan", "vae", "--data", "digits"]) == 2
    assert "torchrun trains one family" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_among_several_is_that_of_a_command_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "digits", "--device", "cpu", "--threads", "1", "--code", "8"]
    assert cli.main(["fit", "kde", "--run", "alone", *flags]) == 0
    capfd.readouterr()
    assert cli.main(["fit", "kde", "pca", *flags]) == 0
    assert statuses(capfd.readouterr().out.partition("each: 1\n")[2]) == {"kde": "done", "pca": "done"}
    alone, among = (checkpoint.load(Path(run) / "latest.pt")["average"] for run in ("alone", "runs/kde"))
    assert all(torch.equal(value, among[name]) for name, value in alone.items())


@pytest.mark.slow
def test_the_same_command_resumes_all_runs_after_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "fit", "gan", "vae", "--data", "digits", "--device", "cpu"]
    command += ["--epochs", "5", "--batch", "32", "--every", "100000"]
    variables = {**environment(), "PYTHONPATH": str(ROOT)}

    def fit(folder: Path, *, interrupted: bool) -> int:
        folder.mkdir(exist_ok=True)
        with subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True) as process:
            if interrupted:
                wait_for(*(folder / "runs" / name / "log.jsonl" for name in ("gan", "vae")), seconds=300)
                process.terminate()
        return process.returncode

    assert fit(tmp_path / "straight", interrupted=False) == 0
    assert fit(tmp_path / "split", interrupted=True) == 130
    split = {name: tmp_path / "split/runs" / name / "latest.pt" for name in ("gan", "vae")}
    assert 0 < checkpoint.load(split["vae"])["images"] < 5 * 1497
    assert fit(tmp_path / "split", interrupted=False) == 0
    for name, path in split.items():
        whole, resumed = checkpoint.load(tmp_path / "straight/runs" / name / "latest.pt"), checkpoint.load(path)
        assert all(torch.equal(value, resumed["family"][key]) for key, value in whole["family"].items())
