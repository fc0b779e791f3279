"""The labels that a request names: classes of its model by name or number, or none."""

import difflib
from collections.abc import Sequence

from service.engine.catalog import Model, fold_name
from service.engine.request import NO_LABEL
from service.errors import InvalidParameter
from service.generation.parameters import Decode, Encode, Generate, Interpolate

NONE = "none"
"""How requests spell that an image has no label, in models without a class of this name."""
MAX_LISTED = 12
"""Classes that an error lists; of more it lists the nearest."""
NEAREST = 5
MAX_COMPARED = 32
"""Characters of a name that are compared, so that a thousand long names do not take long."""


def labels_of(model: Model, parameters: Generate | Interpolate | Encode | Decode) -> list[int]:
    """The engine's labels for `label` or its alias `digit`; an empty list if the request names none.

    Raises InvalidParameter if the model takes no label, or not these.
    """
    if parameters.digit and parameters.label:
        raise InvalidParameter("digit: means the same as `label`; give one of them")
    if parameters.digit:
        return _digits(model, parameters.digit)
    return [_label(model, label) for label in parameters.label]


def find_label(model: Model, label: str) -> int | None:
    """The engine's label that `label` means to the model; None if it has no such class."""
    number = model.class_number(label)
    return NO_LABEL if number is None and label == NONE else number


def format_label(model: Model, label: int) -> str:
    """An engine's label as requests spell it."""
    return NONE if label == NO_LABEL else model.classes[label]


def suggestion(model: Model, label: str = "") -> str:
    """What to name instead of `label`: one of all classes if they are few, else of those with a similar name."""
    if len(model.classes) <= MAX_LISTED:
        return f"its classes are: {', '.join(model.classes)}"
    names: dict[str, list[str]] = {}
    for name in model.classes:
        names.setdefault(fold_name(name)[:MAX_COMPARED], []).append(name)
    found = difflib.get_close_matches(fold_name(label)[:MAX_COMPARED], names, NEAREST)
    nearest = [name for key in found for name in names[key]][:NEAREST]
    return (
        f"the nearest are: {', '.join(nearest)}" if nearest else f"GET /models lists its {len(model.classes)} classes"
    )


def _label(model: Model, label: str) -> int:
    found = find_label(model, label)
    if not model.classes:
        raise InvalidParameter(f"label: {model.name} is not conditional; GET /models lists the models that are")
    if found is None:
        raise InvalidParameter(f"label: {model.name} has no class {label!r}; {suggestion(model, label)}")
    if found == NO_LABEL and not model.family.unconditional:
        raise InvalidParameter(f"label: {model.name} always takes a label; {suggestion(model)}")
    return found


def _digits(model: Model, digits: Sequence[int]) -> list[int]:
    count = len(model.classes)
    if not count:
        raise InvalidParameter(f"digit: {model.name} is not conditional; GET /models lists the models that are")
    if not model.classes_are_digits:
        raise InvalidParameter(
            f"digit: the classes of {model.name} are not the digits; use `label`; {suggestion(model)}"
        )
    if NO_LABEL in digits and not model.family.unconditional:
        raise InvalidParameter(f"digit: {model.name} always takes a digit, 0 to {count - 1}")
    if any(digit >= count for digit in digits):
        raise InvalidParameter(f"digit: {model.name} takes 0 to {count - 1}")
    return list(digits)
