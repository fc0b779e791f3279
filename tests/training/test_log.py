"""What a run keeps of its losses."""

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


@pytest.mark.parametrize("moment", ["begins", "goes on", "writes"])
def test_a_full_disk_is_met_by_who_writes_and_by_no_thread(
    moment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        with full(moment == "begins"), log.Log(tmp_path, 1, 1) as kept:
            with full(moment == "goes on"):
                kept.rewind(0)
            with full():
                kept.samples(1, 0.5, None)

    others = set(threading.enumerate())
    with pytest.raises(OSError, match="File too large"):
        run()
    for thread in set(threading.enumerate()) - others:
        thread.join(1)
    assert "Exception" not in capsys.readouterr().err


def test_tensorboard_reads_what_is_written_and_not_what_a_run_that_resumed_forgot(tmp_path: Path) -> None:
    with log.Log(tmp_path, 100, 1) as kept:
        for images in (10, 20):
            kept.samples(images, images / 100, None)
    with log.Log(tmp_path, 100, 1) as kept:
        kept.rewind(10)
        kept.samples(30, 0.3, None)
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("sample_distance")
    assert [(event.step, round(event.value, 6)) for event in read] == [(10, 0.1), (30, 0.3)]


@contextmanager
def full(really: bool = True) -> Iterator[None]:
    """No file can grow."""
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if really else bounds[0], bounds[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)


def test_what_has_no_log_has_no_curves(tmp_path: Path) -> None:
    assert log.curves(tmp_path) == {}
