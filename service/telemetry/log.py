"""Log lines: JSON for machines, or text for a terminal, each with its time, level and process."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.types import EventDict, Processor

from service.settings import Settings

if TYPE_CHECKING:  # the front writes lines too, and has no use for torch, which a call knows
    from service.telemetry.request_context import RequestContext

PIPE_BUF = 4096
"""Bytes that a pipe takes in one piece, so that other processes' lines do not get into the middle (PIPE_BUF)."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
ENCODER = json.JSONEncoder(default=repr)
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


class RequestLog:
    """Lines of requests, which are many: they take the shortest way, and are written a few at a time."""

    def __init__(self, settings: Settings) -> None:
        self.least = getattr(logging, settings.log_level.upper())
        self.render = _renderer(settings, sys.stderr)

    def write(self, calls: "Iterable[RequestContext]") -> None:
        """A line for each."""
        shift, pid = time.time() - time.perf_counter(), os.getpid()
        lines = []
        for call in calls:
            level = "debug" if call.is_probe else "info"
            if LEVELS[level] >= self.least:
                over = datetime.fromtimestamp(shift + call.finished_at, UTC).isoformat()
                told = {"event": "request", "timestamp": over, **call.log_fields(), "level": level, "pid": pid}
                lines.append(str(self.render(None, level, told)))
        for piece in _pieces(lines):
            sys.stderr.write(piece)
            sys.stderr.flush()


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Whole lines, as many at a time as a pipe takes in one piece."""
    piece = ""
    for line in lines:
        if piece and len(piece) + len(line) >= PIPE_BUF:
            yield piece
            piece = ""
        piece += f"{line}\n"
    if piece:
        yield piece


def _pretty(settings: Settings, stream: TextIO) -> bool:
    return settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())


def _renderer(settings: Settings, stream: TextIO) -> Processor:
    if _pretty(settings, stream):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    # Its own default makes an encoder for each line.
    return structlog.processors.JSONRenderer(serializer=lambda event, **_: ENCODER.encode(event))


def _process(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event
