"""Every scenario in its quick form, and the report of their lines."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import scenarios
from chaos.cli import main, run_scenario
from chaos.report import SKIPPED, summary
from chaos.scenario import Line, Scenario, Setting
from chaos.scenarios import overload

MEASURES_TIME = {"network", "overload"}


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, pytest.mark.alone] if name in MEASURES_TIME else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in scenarios.NAMES])
def test_a_scenario_loses_nothing(name: str) -> None:
    lines = run_scenario(scenarios.get(name), quick=True, seed=0)
    assert lines
    assert not [line for line in lines if line.failed]
    if skipped := [line.skipped for line in lines if line.skipped]:
        pytest.skip("; ".join(skipped))


def test_a_network_that_cannot_be_created_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    lines = run_scenario(scenarios.get("network"), quick=True, seed=0)
    assert lines
    assert all(line.skipped and not line.failed for line in lines)
    assert summary(lines)[0] == SKIPPED


def test_goodput_is_compared_with_the_peaks_before_and_after_it() -> None:
    assert overload.goodput_share([100, 80, 60, 40], [90, 70, 50]) == 1
    assert overload.goodput_share([100, 100], [80]) == 0.8


class Scripted:
    """Some scenario.

    Yields the lines that it was created with, and raises the exceptions among them.
    """

    def __init__(self, *lines: Line | Exception) -> None:
        self.lines = lines

    def run(self, setting: Setting) -> Iterator[Line]:
        assert setting.root.is_dir()
        for line in self.lines:
            if isinstance(line, Exception):
                raise line
            yield line


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("Before.\n<!-- chaos -->\nold\n<!-- /chaos -->\nAfter.\n")
    return path


def run_all(page: Path, *lines: Line | Exception) -> int:
    """Return the exit status of all scenarios, the first with `lines` and the others with a line that is fine."""
    first = {scenarios.NAMES[0]: Scripted(*lines)} if lines else {}
    others = Scripted(Line("checked", 3, 0, "fine"))
    return main(["--quick", "--write", str(page)], get=lambda name: first.get(name, others))


def test_the_table_replaces_what_is_between_the_marks(page: Path) -> None:
    assert run_all(page) == 0
    text = page.read_text()
    assert text.startswith("Before.\n<!-- chaos -->\nThe quick form, seed 0, ")
    assert text.endswith("\n<!-- /chaos -->\nAfter.\n")
    assert text.count("| checked | 3 | 0 | fine |") == len(scenarios.NAMES)
    assert "| Some scenario | checked |" in text
    assert "old" not in text


def test_a_loss_gives_exit_status_1(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all(page, Line("kept", 5, 0), Line("dropped", 5, 2, "late")) == 1
    assert "| dropped | 5 | 2 | late |" in page.read_text()
    assert capsys.readouterr().out.endswith(f"1 of {len(scenarios.NAMES) + 1} checks failed. Exit status 1.\n")


def test_a_line_that_was_not_run_is_shown_and_gives_exit_status_3(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all(page, Line("clock set", 0, 0, skipped="no libfaketime")) == 3
    assert "| clock set | 0 | not run | no libfaketime |" in page.read_text()
    output = capsys.readouterr().out
    assert "clock set: 0 times, NOT RUN: no libfaketime" in output
    assert output.endswith(f"0 of {len(scenarios.NAMES)} checks failed, 1 not run (no libfaketime). Exit status 3.\n")


def test_a_line_that_counted_nothing_fails(page: Path) -> None:
    assert run_all(page, Line("requests", 0, 0)) == 1
    assert "| requests | 0 | failed |  |" in page.read_text()


def test_an_exception_in_a_scenario_is_a_loss_and_the_others_run(page: Path) -> None:
    assert run_all(page, Line("started", 1, 0), OSError("no disk")) == 1
    text = page.read_text()
    assert "| started | 1 | 0 |" in text
    assert "| the scenario ended with an exception | 1 | 1 | OSError('no disk') |" in text
    assert text.count("| checked |") == len(scenarios.NAMES) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no scenario is called nope; choose from "),
        (["load", "--write", "docs/reliability.md"], "--write needs the table of all scenarios"),
        (["--write", "README.md"], "has no place for the table"),
        (["--write", "nowhere.md"], "has no place for the table"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_status_2_before_any_scenario_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(name: str) -> Scenario:
        raise AssertionError(name)

    with pytest.raises(SystemExit) as ended:
        main(arguments, get=never)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
