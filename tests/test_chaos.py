"""Every trial in its short form, and what is done with what trials find."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import scenarios
from chaos.cli import done, main
from chaos.scenario import Line, Scenario, Setting
from chaos.scenarios import overload

TIMED = {"overload"}
"""Those whose bounds are seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.alone] if name in TIMED else []) for name in scenarios.NAMES]
)
def test_nothing_is_lost(name: str) -> None:
    lines = done(scenarios.get(name), quick=True, seed=0)
    assert lines
    assert not [line for line in lines if line.lost]
    assert all(line.count > 0 or "not done" in line.figures for line in lines), "what was not done shows nothing"


def test_a_machine_that_others_slow_down_meanwhile_is_not_held_against_the_service() -> None:
    assert overload.share([100, 80, 60, 40], [90, 70, 50]) == 1
    assert overload.share([100, 100], [80]) == 0.8


class Scripted:
    """A trial that finds what it is told to. And more."""

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
    path.write_text("Before.\n<!-- chaos -->\nstale\n<!-- /chaos -->\nAfter.\n")
    return path


def whole(page: Path, **given: Scripted) -> int:
    """The exit status of all trials, those that are `given` in their places and nothing in the others'."""
    return main(
        ["--quick", "--write", str(page)], get=lambda name: given.get(name, Scripted(Line("stood", 3, 0, "well")))
    )


def test_the_table_is_put_in_its_place_and_nothing_else_is_touched(page: Path) -> None:
    assert whole(page) == 0
    text = page.read_text()
    assert text.startswith("Before.\n<!-- chaos -->\nThe quick form, seed 0, ")
    assert text.endswith("\n<!-- /chaos -->\nAfter.\n")
    assert text.count("| stood | 3 | 0 | well |") == len(scenarios.NAMES)
    assert "stale" not in text


def test_a_trial_that_loses_something_makes_the_exit_status_1(page: Path) -> None:
    assert whole(page, **{scenarios.NAMES[0]: Scripted(Line("kept", 5, 0), Line("fell", 5, 2, "over"))}) == 1
    assert "| fell | 5 | 2 | over |" in page.read_text()


def test_a_trial_that_breaks_off_has_lost_and_the_others_go_on(page: Path) -> None:
    assert whole(page, **{scenarios.NAMES[0]: Scripted(Line("began", 1, 0), OSError("no disk"))}) == 1
    text = page.read_text()
    assert "| began | 1 | 0 |" in text
    assert "broke off: OSError('no disk') | 1 | 1 |" in text
    assert text.count("| stood |") == len(scenarios.NAMES) - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no trial is called nope; there are "),
        (["load", "--write", "docs/reliability.md"], "name none"),
        (["--write", "README.md"], "has no place for the table"),
        (["--write", "nowhere.md"], "has no place for the table"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_anything_is_done(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(name: str) -> Scenario:
        raise AssertionError(name)

    with pytest.raises(SystemExit) as ended:
        main(arguments, get=never)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
