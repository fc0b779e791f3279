"""The registry of families: each file in this directory defines one family."""

import importlib
import pkgutil

from models.base import Family


class UnknownFamily(LookupError):
    """No file in `models/families/` has this name."""


def names() -> list[str]:
    """The names of all families, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[Family]:
    """The class of the family `name`. Raises UnknownFamily, whose message lists the names."""
    if name not in names():
        raise UnknownFamily(f"unknown family {name!r}; available: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__file__} must define exactly one subclass of Family, not {len(classes)}")
    return classes[0]
