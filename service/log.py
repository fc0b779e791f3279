"""Log lines."""

import logging

from service.settings import Settings


def configure(settings: Settings) -> None:
    """Write lines from `settings.log_level` on to stderr, each with its process."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )
