"""The log of a run."""

import json
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.disk import file_size_limit
from training import log
from training.cli import main


def run_with_log(run: Path, *entries: object) -> Path:
    run.mkdir()
    (run / log.LINES).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return run


def test_curves_group_the_log_by_scalar(tmp_path: Path) -> None:
    run = run_with_log(
        tmp_path / "run",
        {"images": 10, "time": 1.0, "loss": 2.0, "w1": 0.5},
        {"images": 20, "time": 2.0, "loss": 1.0},
        {"images": 20, "time": 2.0, "sample_distance": 3.0},
    )
    assert log.curves(run) == {"loss": [[10, 2], [20, 1]], "w1": [[10, 0.5]], "sample_distance": [[20, 3]]}


def test_long_curves_are_thinned_to_means_and_keep_the_last_image_count(tmp_path: Path) -> None:
    run = run_with_log(tmp_path / "run", *({"images": i, "time": 0.0, "loss": float(i)} for i in range(1, 101)))
    curve = log.curves(run, points=10)["loss"]
    assert curve == [[10 * k, 10 * k - 4.5] for k in range(1, 11)]
    assert len(log.curves(run, points=7)["loss"]) <= 7
    assert log.curves(run, points=7)["loss"][-1][0] == 100


def test_curves_skip_an_incomplete_line(tmp_path: Path) -> None:
    run = run_with_log(tmp_path / "run", {"images": 10, "time": 1.0, "loss": 2.0})
    with (run / log.LINES).open("a") as file:
        file.write('{"images": 20, "ti')
    assert log.curves(run) == {"loss": [[10, 2]]}


def test_a_number_that_is_not_finite_is_null_in_the_log_and_left_out_of_the_curves(tmp_path: Path) -> None:
    with log.Log(tmp_path, 100, 1) as run_log:
        run_log.samples(10, float("nan"), None)
        run_log.samples(20, 0.5, None)
    with (tmp_path / log.LINES).open("a") as file:
        file.write('{"images": 30, "sample_distance": Infinity}\n')
    first = json.loads((tmp_path / log.LINES).read_text().splitlines()[0])
    assert (first["images"], first["sample_distance"]) == (10, None)
    assert log.curves(tmp_path) == {"sample_distance": [[20, 0.5]]}


def test_lines_from_before_the_first_checkpoint_are_discarded(tmp_path: Path) -> None:
    run = run_with_log(tmp_path / "run", {"images": 10, "time": 1.0, "loss": 2.0})
    command = ["fit", "gan", "--data", "digits", "--device", "cpu", "--epochs", "0.1", "--batch", "32"]
    assert main([*command, "--run", str(run)]) == 0
    images = [entry["images"] for entry in map(json.loads, (run / log.LINES).read_text().splitlines())]
    assert images == sorted(images)
    assert 10 not in images


@pytest.mark.parametrize("moment", ["starts", "resumes", "writes"])
def test_the_error_of_a_full_disk_is_raised_where_the_log_is_written_and_in_no_thread(
    moment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(when: str) -> AbstractContextManager[None]:
        return file_size_limit(0) if moment == when else nullcontext()

    def run() -> None:
        with full_disk("starts"), log.Log(tmp_path, 1, 1) as run_log:
            with full_disk("resumes"):
                run_log.rewind(0)
            with full_disk("writes"):
                run_log.samples(1, 0.5, None)

    before = set(threading.enumerate())
    with pytest.raises(OSError, match="File too large"):
        run()
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
    assert "Exception" not in capsys.readouterr().err


def test_tensorboard_reads_the_events_of_a_resumed_run_without_the_discarded_ones(tmp_path: Path) -> None:
    with log.Log(tmp_path, 100, 1) as run_log:
        for images in (10, 20):
            run_log.samples(images, images / 100, None)
    with log.Log(tmp_path, 100, 1) as run_log:
        run_log.rewind(10)
        run_log.samples(30, 0.3, None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("sample_distance")
    assert [(event.step, round(event.value, 6)) for event in events] == [(10, 0.1), (30, 0.3)]


def test_a_run_without_a_log_has_no_curves(tmp_path: Path) -> None:
    assert log.curves(tmp_path) == {}
