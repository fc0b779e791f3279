"""What a trial is: a module in chaos/scenarios with `run`, which hurts something and says what was lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Setting:
    """How a trial is to be done."""

    quick: bool
    """Small enough for a test."""
    seed: int
    root: Path
    """A scratch directory of the trial's own."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    action: str
    """What was done, in one phrase."""
    count: int
    """How often."""
    lost: int
    """What was lost of it: answers with wrong bytes, requests without an end, bounds not kept. Has to be 0."""
    figures: str = ""
    """The figures."""


class Scenario(Protocol):
    """A module whose docstring's first line is its title."""

    __doc__: str | None

    def run(self, setting: Setting) -> Iterator[Line]:
        """Do it; each line as soon as it is known."""
