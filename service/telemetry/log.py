"""Log lines on stderr: JSON for machines or text for a terminal, each with time, level and process."""

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

if TYPE_CHECKING:  # the supervisor logs too, and must not import torch
    from service.telemetry.request_context import RequestContext

PIPE_BUF = 4096
"""Bytes that a pipe takes atomically, so that lines of several processes do not mix."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
ENCODER = json.JSONEncoder(default=repr)
SHARED: tuple[Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(settings: Settings, process: str = "") -> None:
    """Send log records of `settings.log_level` and above to stderr, with the name of this `process` if it has one."""
    stream = sys.stderr

    def add_process(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["pid"] = os.getpid()
        if process:
            event["process"] = process
        return event

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *SHARED, add_process],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(() if _is_text(settings, stream) else (structlog.processors.format_exc_info,)),
            _renderer(settings, stream),
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class RequestLog:
    """Writes one line per request, many at a time, without the cost of the logging module."""

    def __init__(self, settings: Settings) -> None:
        self.min_level = getattr(logging, settings.log_level.upper())
        self.render = _renderer(settings, sys.stderr)

    def write(self, contexts: "Iterable[RequestContext]") -> None:
        """Write the line of each request."""
        clock_offset, pid = time.time() - time.perf_counter(), os.getpid()
        lines = []
        for context in contexts:
            level = "debug" if context.is_probe else "info"
            if LEVELS[level] >= self.min_level:
                finished_at = datetime.fromtimestamp(clock_offset + context.finished_at, UTC).isoformat()
                fields = {"event": "request", "timestamp": finished_at, **context.log_fields()}
                lines.append(str(self.render(None, level, {**fields, "level": level, "pid": pid})))
        for chunk in _chunks(lines):
            sys.stderr.write(chunk)
            sys.stderr.flush()


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    """Group whole lines into chunks that a pipe takes atomically."""
    chunk = ""
    for line in lines:
        if chunk and len(chunk) + len(line) >= PIPE_BUF:
            yield chunk
            chunk = ""
        chunk += f"{line}\n"
    if chunk:
        yield chunk


def _is_text(settings: Settings, stream: TextIO) -> bool:
    return settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())


def _renderer(settings: Settings, stream: TextIO) -> Processor:
    if _is_text(settings, stream):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    # structlog's default creates a JSON encoder for each line.
    return structlog.processors.JSONRenderer(serializer=lambda event, **_: ENCODER.encode(event))
