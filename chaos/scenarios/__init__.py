"""The trials, one file each; the directory is the registry."""

import pkgutil
from importlib import import_module
from typing import cast

from chaos.scenario import Scenario

NAMES = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def get(name: str) -> Scenario:
    """The trial called `name`, one of NAMES."""
    return cast(Scenario, import_module(f"{__name__}.{name}"))
