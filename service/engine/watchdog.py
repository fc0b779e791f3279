"""The watchdog: it ends a process that makes no progress or has lost its GPU, so that the supervisor replaces it."""

import asyncio
import faulthandler
import logging
import os
import time
from collections.abc import Callable

import torch

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
            started_at = engine.step_started_at  # once: the engine's thread sets it to None
            if started_at is not None and time.perf_counter() - started_at > timeout:
                log.critical("a device step has run for more than %g s; this process exits", timeout)
                os._exit(1)
            sample()
            await asyncio.sleep(min(timeout / 4, 5))
    finally:
        faulthandler.cancel_dump_traceback_later()


def exit_if_device_is_lost(error: Exception, device: torch.device) -> None:
    """Exit the process if `error` came from a GPU that no longer works.

    After an illegal address or a failed launch, every call of CUDA in the process raises.
    """
    if isinstance(error, torch.AcceleratorError):
        try:
            torch.zeros(1, device=device).item()
        except torch.AcceleratorError:
            log.critical("device %s no longer works (%s); this process exits", device, error)
            os._exit(1)
