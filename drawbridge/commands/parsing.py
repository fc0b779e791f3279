"""What all commands share: one-line errors for a wrong command line and for a missing extra."""

import argparse
import typing
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
OWN_PACKAGES = ("drawbridge", "models", "pictures", "service", "training")


class UsageError(Exception):
    """The command cannot run as it was given; the message says what to change."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, where argparse prints several lines and exits."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


@contextmanager
def requires_extra(extra: str, command: str = "", otherwise: str = "") -> Iterator[None]:
    """Raise UsageError where an import in the block fails because another project's package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:
            raise
        name = f"drawbridge {command}".rstrip()
        # PyPI has another project of the name `drawbridge`.
        remedy = f"pip install '.[{extra}]' in a checkout of Drawbridge{otherwise}"
        raise UsageError(f"{name} needs the {extra} extra: {remedy}") from None
