"""The scenarios, one module each. This directory is the registry."""

import pkgutil
from importlib import import_module
from typing import cast

from chaos.scenario import Scenario

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get(name: str) -> Scenario:
    """Return the scenario called `name`, one of NAMES."""
    return cast(Scenario, import_module(f"{__name__}.{name}"))
