"""The registry is this directory: one file, one family."""

import importlib
import pkgutil

from models.base import Family


class UnknownFamily(LookupError):
    """No file in `models/families/` has that name."""


def names() -> list[str]:
    """The families there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[Family]:
    """The family's class. Raises UnknownFamily, which names those that there are."""
    if name not in names():
        raise UnknownFamily(f"no family is called {name!r}; there are: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    here = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    ]
    if len(here) != 1:
        raise TypeError(f"{module.__file__} must define one subclass of Family, not {len(here)}")
    return here[0]
