"""The loops that call `Engine.step()`: on the event loop, or on a thread.

On a CPU the engine runs on the event loop itself. One pass of the loop reads every ready socket, and then the engine
runs one device step for all requests that arrived. No data crosses threads, and the running step is the batching
window. On a GPU the engine runs on its own thread: it mostly waits for the device, and meanwhile the event loop serves
sockets.

If a step raises an unexpected error, the engine ends every request with that error and starts with an empty queue.
"""

import asyncio
import logging
import threading
import time
from typing import Protocol

from service.engine.engine import Engine, notify
from service.engine.request import Ticket

log = logging.getLogger(__name__)

LOOP_PASSES = 3
"""Passes of the event loop between two steps, for ASGI requests; a direct response would need only one. In the
first pass, notified handlers respond and sockets are read, including those of clients that send their next request at
once. In the second, the handlers of these requests start. In the third, their tickets reach the engine's inbox."""


class EngineLoop(Protocol):
    """Calls `Engine.step` from `start` to `stop`, and `Ticket.on_update` on the event loop that called `start`."""

    async def start(self) -> None:
        """Start to call steps."""

    async def stop(self, grace: float) -> None:
        """Wait up to `grace` seconds for the accepted requests, then end the others and stop."""


class EventLoopEngine:
    """Runs the engine on the event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def start(self) -> None:
        self.ready = asyncio.Event()
        self.engine.wake = self.ready.set
        self.task = asyncio.create_task(self._run(), name="engine")

    async def stop(self, grace: float) -> None:
        await _drain(self.engine, grace)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.engine.abandon()

    async def _run(self) -> None:
        while True:
            self.ready.clear()  # before the step: a notified handler may submit another request during it
            if _step(self.engine):
                for _ in range(LOOP_PASSES):
                    await asyncio.sleep(0)
            else:
                await self.ready.wait()


class ThreadEngine:
    """Runs the engine on a thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ready = threading.Event()
        self.running = True
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def notify_on_loop(tickets: list[Ticket]) -> None:
            loop.call_soon_threadsafe(notify, tickets)

        self.engine.notify = notify_on_loop
        self.engine.wake = self.ready.set
        self.thread.start()

    async def stop(self, grace: float) -> None:
        await _drain(self.engine, grace)
        self.running = False
        self.ready.set()
        await asyncio.to_thread(self.thread.join)
        self.engine.abandon()

    def _run(self) -> None:
        while self.running:
            if not _step(self.engine):
                self.ready.wait()
                self.ready.clear()


def _step(engine: Engine) -> bool:
    try:
        return engine.step()
    except Exception as error:
        try:
            engine.recover(error)
        except Exception:
            log.exception("the engine could not recover from a failed step")
        return False


async def _drain(engine: Engine, grace: float) -> None:
    """Stop accepting requests, and wait until all accepted ones have ended, but at most `grace` seconds."""
    engine.stop()
    deadline = time.monotonic() + grace
    while engine.outstanding and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
