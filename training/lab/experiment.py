"""The data model of an experiment: the lecture's claim, the measured numbers, and the values that theory expects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Relation = Literal["is", "at least", "at most", "reported"]


@dataclass(frozen=True)
class Number:
    """One row of an experiment's table."""

    what: str
    measured: float
    expected: float = 0.0
    relation: Relation = "reported"
    """The required relation of `measured` to `expected`; `reported` requires nothing."""
    within: float = 0.0
    """The tolerance, in the unit of `measured`."""
    source: str = ""
    """The source of `expected`: a theorem, an equation, a paper."""

    @property
    def holds(self) -> bool:
        """Whether the measured number fulfils its relation. A reported number always does; NaN never does."""
        if self.relation == "is":
            return abs(self.measured - self.expected) <= self.within
        if self.relation == "at least":
            return self.measured >= self.expected - self.within
        if self.relation == "at most":
            return self.measured <= self.expected + self.within
        return self.measured == self.measured


def near(what: str, measured: float, theory: float, within: float, source: str) -> Number:
    """A number that must equal `theory` up to `within`."""
    return Number(what, measured, theory, "is", within, source)


def at_least(what: str, measured: float, bound: float, source: str) -> Number:
    """A number that must be at least `bound`."""
    return Number(what, measured, bound, "at least", source=source)


def at_most(what: str, measured: float, bound: float, source: str) -> Number:
    """A number that must be at most `bound`."""
    return Number(what, measured, bound, "at most", source=source)


def reported(what: str, measured: float, source: str = "") -> Number:
    """A number without a requirement; `source` may give a published value."""
    return Number(what, measured, source=source)


@dataclass(frozen=True)
class Setting:
    """How to run an experiment."""

    seed: int = 0
    quick: bool = False
    """The small form, for tests: under 20 seconds on one core."""
    data: str = "digits"
    """The data set of experiments on digits, a name for `training.data.load`."""
    data_root: Path | None = None


@dataclass(frozen=True)
class Findings:
    """The results of one seed."""

    numbers: tuple[Number, ...]
    """The same numbers in the same order for every seed."""
    plot_data: Mapping[str, Any] = field(default_factory=dict)
    """The data of the pictures: arrays and containers of them. Pickled between processes."""


@dataclass(frozen=True)
class Picture:
    """A figure or an animation."""

    file: str
    """The file name, ending in .png or .webp."""
    caption: str
    """What the picture shows, and what follows from it."""
    data: bytes


@dataclass(frozen=True)
class Experiment:
    """One argument of the lecture, as a measurement."""

    title: str
    claim: str
    """The claim of the lecture."""
    method: str
    """How it is measured, with which families, and the sources."""
    measure: Callable[[Setting], Findings]
    """Trains and measures for one seed. A pure function of the setting."""
    draw: Callable[[Sequence[Findings]], list[Picture]]
    """Draws the pictures from the findings of all seeds."""
    seeds: int = 1
    """Default number of seeds."""
    digits: bool = False
    """Whether it needs a data set of digits."""
