"""Log lines: JSON for machines, or text for a terminal, each with its time, level and process."""

import logging
import os
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.types import EventDict, Processor

from service.settings import Settings

if TYPE_CHECKING:  # the front writes lines too, and has no use for torch, which a call knows
    from service.calls import Call

ATOMIC = 4096
"""Bytes that a pipe takes in one piece, so that other processes' lines do not get into the middle (PIPE_BUF)."""
SHARED: tuple[Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(settings: Settings) -> None:
    """Write lines from `settings.log_level` on to stderr."""
    stream = sys.stderr
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *SHARED, _process],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(() if _pretty(settings, stream) else (structlog.processors.format_exc_info,)),
            _renderer(settings, stream),
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.captureWarnings(True)  # what libraries warn of are lines too


class Lines:
    """Lines that are written together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)

    debug = info

    def write(self, stream: TextIO) -> None:
        """Write what there is: whole lines at a time, and so few that a pipe takes them in one piece."""
        lines, self.lines = self.lines, []
        part, size = list[str](), 0
        for line in lines:
            if part and size + len(line) >= ATOMIC:
                self._put(stream, part)
                part, size = [], 0
            part.append(line)
            size += len(line) + 1
        if part:
            self._put(stream, part)

    def _put(self, stream: TextIO, lines: list[str]) -> None:
        stream.write("\n".join(lines) + "\n")
        stream.flush()


class Requests:
    """Lines of requests, which are many: they take the shortest way, and are written a few at a time."""

    def __init__(self, settings: Settings) -> None:
        self.lines = Lines()
        self.log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            self.lines,
            processors=[structlog.processors.add_log_level, _process, _renderer(settings, sys.stderr)],
            wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
            cache_logger_on_first_use=True,
        )

    def write(self, calls: "Iterable[Call]") -> None:
        """A line for each."""
        shift = time.time() - time.perf_counter()
        for call in calls:
            over = datetime.fromtimestamp(shift + call.over, UTC).isoformat()
            (self.log.debug if call.watched else self.log.info)("request", timestamp=over, **call.summary())
        self.lines.write(sys.stderr)


def _pretty(settings: Settings, stream: TextIO) -> bool:
    return settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())


def _renderer(settings: Settings, stream: TextIO) -> Processor:
    if _pretty(settings, stream):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    return structlog.processors.JSONRenderer()


def _process(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event
