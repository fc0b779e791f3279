"""What an experiment is: what the lecture says, what is measured, and what theory or others found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Relation = Literal["is", "at least", "at most", "reported"]


@dataclass(frozen=True)
class Number:
    """One line of an experiment's table."""

    what: str
    measured: float
    expected: float = 0.0
    relation: Relation = "reported"
    """How `measured` has to stand to `expected`; `reported` asks for nothing."""
    within: float = 0.0
    """How far it may be off, in its own unit."""
    source: str = ""
    """Where what is expected comes from: a theorem, an equation, a paper."""

    @property
    def holds(self) -> bool:
        """Whether it came out as expected; so does what nothing is expected of. NaN never does."""
        if self.relation == "is":
            return abs(self.measured - self.expected) <= self.within
        if self.relation == "at least":
            return self.measured >= self.expected - self.within
        if self.relation == "at most":
            return self.measured <= self.expected + self.within
        return self.measured == self.measured


def near(what: str, measured: float, theory: float, within: float, source: str) -> Number:
    """A number that has to be `theory`, give or take `within`."""
    return Number(what, measured, theory, "is", within, source)


def at_least(what: str, measured: float, bound: float, source: str) -> Number:
    """A number that has to be `bound` or more."""
    return Number(what, measured, bound, "at least", source=source)


def at_most(what: str, measured: float, bound: float, source: str) -> Number:
    """A number that has to be `bound` or less."""
    return Number(what, measured, bound, "at most", source=source)


def reported(what: str, measured: float, source: str = "") -> Number:
    """A number to look at; `source` may say what others found."""
    return Number(what, measured, source=source)


@dataclass(frozen=True)
class Setting:
    """How an experiment is to be done."""

    seed: int = 0
    quick: bool = False
    """Small enough for a test: under 20 seconds on one core."""
    data: str = "digits"
    """The data set of those that look at digits, as `training.data.load` knows them."""
    data_root: Path | None = None


@dataclass(frozen=True)
class Findings:
    """What one seed's run found."""

    numbers: tuple[Number, ...]
    """The same ones, in the same order, for every seed."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the pictures are drawn from: arrays, and containers of them. Goes from one process to another."""


@dataclass(frozen=True)
class Picture:
    """A figure or an animation."""

    file: str
    """Its name, with the ending that says what it is: .png or .webp."""
    caption: str
    """What is to be seen, and what it says."""
    data: bytes


@dataclass(frozen=True)
class Experiment:
    """One argument of the lecture."""

    title: str
    claim: str
    """What the lecture says."""
    method: str
    """What is done here, by which family, with the sources."""
    measure: Callable[[Setting], Findings]
    """Trains and measures, for one seed. A pure function of the setting."""
    draw: Callable[[Sequence[Findings]], list[Picture]]
    """Pictures of what all seeds found."""
    seeds: int = 1
    """How many seeds unless told otherwise."""
    digits: bool = False
    """Whether it looks at digits."""
