"""The watchdog: it ends a process that makes no progress, so that the supervisor replaces it."""

import asyncio
import faulthandler
import logging
import os
import time
from collections.abc import Callable

from service.engine.interface import RequestEngine

log = logging.getLogger(__name__)


async def watch(engine: RequestEngine, timeout: float, sample: Callable[[], None]) -> None:
    """Exit the process if its event loop or a device step stands still for `timeout` seconds.

    Calls `sample` several times in this period.
    """
    try:
        while True:
            # This timer is a thread of C, so a held interpreter lock cannot stop it.
            faulthandler.dump_traceback_later(timeout, exit=True)
            if engine.step_started_at is not None and time.perf_counter() - engine.step_started_at > timeout:
                log.critical("a device step has run for more than %g s; this process exits", timeout)
                os._exit(1)
            sample()
            await asyncio.sleep(min(timeout / 4, 5))
    finally:
        faulthandler.cancel_dump_traceback_later()
