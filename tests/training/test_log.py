"""What a run keeps of its losses."""

import errno
import json
import threading
from pathlib import Path

import pytest

from training import log
from training.cli import main


def written(run: Path, *entries: object) -> Path:
    run.mkdir()
    (run / log.LINES).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return run


def test_curves_are_the_log_by_scalar(tmp_path: Path) -> None:
    run = written(
        tmp_path / "run",
        {"images": 10, "time": 1.0, "loss": 2.0, "w1": 0.5},
        {"images": 20, "time": 2.0, "loss": 1.0},
        {"images": 20, "time": 2.0, "sample_distance": 3.0},
    )
    assert log.curves(run) == {"loss": [[10, 2], [20, 1]], "w1": [[10, 0.5]], "sample_distance": [[20, 3]]}


def test_long_curves_are_thinned_to_means_and_reach_the_end(tmp_path: Path) -> None:
    run = written(tmp_path / "run", *({"images": i, "time": 0.0, "loss": float(i)} for i in range(1, 101)))
    curve = log.curves(run, points=10)["loss"]
    assert curve == [[10 * k, 10 * k - 4.5] for k in range(1, 11)]
    assert len(log.curves(run, points=7)["loss"]) <= 7
    assert log.curves(run, points=7)["loss"][-1][0] == 100


def test_a_run_that_was_killed_in_mid_line_has_curves(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"images": 10, "time": 1.0, "loss": 2.0})
    with (run / log.LINES).open("a") as file:
        file.write('{"images": 20, "ti')
    assert log.curves(run) == {"loss": [[10, 2]]}


def test_what_was_written_before_the_first_checkpoint_is_written_once(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"images": 10, "time": 1.0, "loss": 2.0})
    command = ["fit", "gan", "--data", "digits", "--device", "cpu", "--epochs", "0.1", "--batch", "32"]
    assert main([*command, "--run", str(run)]) == 0
    images = [entry["images"] for entry in map(json.loads, (run / log.LINES).read_text().splitlines())]
    assert images == sorted(images)
    assert 10 not in images


def test_a_thread_that_finds_the_disk_full_leaves_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with log.Log(tmp_path, 1, 1):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert "Traceback" not in capsys.readouterr().err


def test_what_has_no_log_has_no_curves(tmp_path: Path) -> None:
    assert log.curves(tmp_path) == {}
