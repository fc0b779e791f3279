"""Log lines: JSON for machines, or text for a terminal, each with its time, level and process."""

import logging
import os
import sys
from typing import Any, TextIO

import structlog
from structlog.types import EventDict, Processor

from service.settings import Settings

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


def requests(settings: Settings) -> structlog.typing.FilteringBoundLogger:
    """A logger of requests, which have many lines: these take the shortest way."""
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[*SHARED, _process, _renderer(settings, sys.stderr)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        cache_logger_on_first_use=True,
    )
    return logger


def _pretty(settings: Settings, stream: TextIO) -> bool:
    return settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())


def _renderer(settings: Settings, stream: TextIO) -> Processor:
    if _pretty(settings, stream):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    return structlog.processors.JSONRenderer()


def _process(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event
