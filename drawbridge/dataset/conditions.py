"""The conditions of `--keep`: `confidence>=0.9`, `confidence>=0.5 and margin>0.2`.

conditions = condition { "and" condition }
condition  = quantity operator number
quantity   = "confidence" | "margin"
operator   = ">=" | ">" | "<=" | "<"
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drawbridge.dataset import DatasetError

QUANTITIES = {
    "confidence": (0.0, 1.0),
    "margin": (-1.0, 1.0),
}
"""The quantities and the range of their values: the judge's probability of an image's label, and how much greater that
is than its greatest probability of another label."""
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
CONDITION = re.compile(r"\s*([a-z]+)\s*(>=|<=|>|<)\s*(-?(?:\d+\.?\d*|\.\d+))\s*")


@dataclass(frozen=True)
class Condition:
    """A quantity compared with a threshold."""

    quantity: str
    operator: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.quantity}{self.operator}{self.threshold:g}"

    def holds(self, values: Mapping[str, Any]) -> Any:
        """Compare the quantity's value, or its array or tensor of values, with the threshold."""
        return OPERATORS[self.operator](values[self.quantity], self.threshold)


def parse(text: str) -> list[Condition]:
    """The conditions in `text`. Raises DatasetError for other text, and for a threshold that no image can reach."""
    return [_parse_one(part, text) for part in re.split(r"\band\b", text)]


def _parse_one(part: str, text: str) -> Condition:
    match = CONDITION.fullmatch(part)
    if match is None or match[1] not in QUANTITIES:
        raise DatasetError(
            f"--keep {text!r}: use conditions such as confidence>=0.9, joined by `and`; the quantities are "
            f"{', '.join(QUANTITIES)}, the operators {', '.join(OPERATORS)}"
        )
    condition = Condition(match[1], match[2], float(match[3]))
    if not any(condition.holds({condition.quantity: end}) for end in QUANTITIES[condition.quantity]):
        low, high = QUANTITIES[condition.quantity]
        raise DatasetError(f"--keep: no image has {condition}; {condition.quantity} is {low:g} to {high:g}")
    return condition
