"""The service's settings, with mistakes in the environment as one-line errors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from drawbridge.commands.parsing import UsageError
from service.settings import PREFIX, Settings, read_settings


def make_settings(**values: Any) -> Settings:
    """Settings from the environment and these values."""
    return _checked(lambda: Settings(**values))


def read_environment(defaults: Mapping[str, str] = MappingProxyType({})) -> Settings:
    """Settings from the environment, which may hold no unknown one, and `defaults` for those that it lacks."""
    return _checked(lambda: read_settings(defaults))


def _checked(create: Callable[[], Settings]) -> Settings:
    """The settings. Raises UsageError that names each variable with a wrong value."""
    try:
        return create()
    except ValidationError as error:
        mistakes = []
        for item in error.errors():
            variable = "".join(f"{PREFIX}{str(part).upper()}: " for part in item["loc"][:1])
            mistakes.append(variable + item["msg"].removeprefix("Value error, "))
        raise UsageError("; ".join(mistakes)) from None
