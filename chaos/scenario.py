"""The contract of a scenario: a module in chaos/scenarios with a `run` that injects faults and reports losses."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Setting:
    """How to run a scenario."""

    quick: bool
    """Whether to run the short form that the tests run."""
    seed: int
    root: Path
    """An empty directory for the scenario's files."""


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    action: str
    """What was done."""
    count: int
    """How often."""
    lost: int
    """Wrong bytes, requests without a response and broken bounds. It must be 0."""
    figures: str = ""
    skipped: str = ""
    """Why the action was not run. Empty if it was."""

    @property
    def failed(self) -> bool:
        """Whether something was lost, or the action was never done although nothing prevented it."""
        return self.lost > 0 or (self.count == 0 and not self.skipped)


class Scenario(Protocol):
    """A module. The first line of its docstring is its title."""

    __doc__: str | None

    def run(self, setting: Setting) -> Iterator[Line]:
        """Run the scenario and yield each line as soon as it is known."""
