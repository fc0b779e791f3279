"""The soak in a short form, its slopes, its summary file and its table."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from chaos.cli import main
from chaos.soak.growth import Series
from harness.server import ROOT, children


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    summary = tmp_path / "soak.json"
    assert main(["soak", "--hours", "0.005", "--summary", str(summary)]) == 0
    lines = {line["action"]: line for line in json.loads(summary.read_text())["lines"]}
    assert lines["SIGKILL of a worker"]["count"] >= 1
    assert lines["requests in all"]["count"] > 100
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- soak -->\nold\n<!-- /soak -->\nAfter.\n")
    assert main(["soak", "--table-of", str(summary), "--write", str(page)]) == 0
    assert "|  | SIGKILL of a worker | " in page.read_text()
    assert "old" not in page.read_text()


@pytest.mark.slow
def test_ctrl_c_ends_a_soak_with_the_table_so_far(tmp_path: Path) -> None:
    summary = tmp_path / "soak.json"
    command = [sys.executable, "-m", "chaos", "soak", "--hours", "1", "--summary", str(summary)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as soak:
        deadline = time.monotonic() + 240
        # Its last service has two workers. Those that it gets the expected bytes from have one.
        while not (services := [pid for pid in children(soak.pid) if len(children(pid)) == 2]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        soak.send_signal(signal.SIGINT)
        output, _ = soak.communicate(timeout=240)
    assert re.search(r"\b0\.0\d of 1\.00 hours, seed 0", output)
    assert "| Soak | queries sent | " in output
    assert "the run ended before it" in output
    assert json.loads(summary.read_text())["head"] in output
    assert not Path(f"/proc/{services[0]}").exists()


def series(slope: float, noise: float, hours: float = 2.0) -> Series:
    """240 samples of a process that grows by `slope` MB per hour."""
    result = Series("memory", " MB", per_hour=5, in_all=4)
    result.times = [*np.linspace(0, 3600 * hours, 240)]
    random = np.random.default_rng(1)
    result.values = [500 + slope * time / 3600 + noise * random.normal() for time in result.times]
    return result


def test_a_slope_has_an_interval_that_holds_it() -> None:
    slope, half = series(slope=3, noise=1).slope()
    assert abs(slope - 3) < half < 1


@pytest.mark.parametrize(("slope", "noise", "exceeded"), [(3, 1, False), (8, 1, True), (0, 0, False), (4, 30, True)])
def test_memory_must_be_shown_to_grow_by_less_than_the_bound(slope: float, noise: float, exceeded: bool) -> None:
    assert series(slope, noise).exceeded() is exceeded


def test_a_short_run_may_grow_by_a_fixed_amount() -> None:
    assert not series(slope=30, noise=0, hours=0.1).exceeded()
    assert series(slope=50, noise=0, hours=0.1).exceeded()


def test_too_few_samples_show_nothing() -> None:
    few = series(slope=0, noise=1)
    del few.times[2:], few.values[2:]
    assert few.exceeded()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "0"], "0 is not a number of hours above 0"),
        (["--hours", "many"], "invalid"),
        (["--write", "README.md"], "has no place for the table"),
        (["--table-of", "nowhere.json"], "nowhere.json is not the summary of a soak"),
        (["--table-of", "README.md"], "README.md is not the summary of a soak"),
    ],
)
def test_a_wrong_argument_of_the_soak_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["soak", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
