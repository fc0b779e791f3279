"""Who calls `Engine.turn()`.

On CPU the event loop itself does: one turn of the loop reads every ready socket, then the engine makes one step for all
that came in. Nothing is handed between threads, and the running step is the batching window. On a GPU a thread of its
own does, since it mostly waits for the device, and the loop can answer sockets meanwhile.

A turn that raises what the engine did not foresee ends every request that is there, and the next turn starts clean.
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
"""Rounds of the event loop between two turns, for those who go ASGI's way: on the fast path one would do. In the first,
those who were told answer, and then sockets are read: of callers who ask again at once, too. In the second, what these
brought begins, so that the third finds it in the mail."""


class EngineLoop(Protocol):
    """Calls turns from `start` to `stop`, and tickets' `told` on the loop that started it."""

    async def start(self) -> None:
        """Begin to call turns."""

    async def stop(self, grace: float) -> None:
        """Let the engine finish what it accepted, for at most `grace` seconds; end the rest."""


class EventLoopEngine:
    """Turns on the event loop."""

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
            self.ready.clear()  # before the turn: whom it tells may ask again in it
            if _step(self.engine):
                for _ in range(LOOP_PASSES):
                    await asyncio.sleep(0)
            else:
                await self.ready.wait()


class ThreadEngine:
    """Turns on a thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ready = threading.Event()
        self.running = True
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def tell_there(tickets: list[Ticket]) -> None:
            loop.call_soon_threadsafe(notify, tickets)

        self.engine.notify = tell_there
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
            log.exception("what a broken turn left behind could not be ended")
        return False


async def _drain(engine: Engine, grace: float) -> None:
    """Return when the engine has nothing left to draw, or `grace` seconds have gone."""
    engine.stop()
    end = time.monotonic() + grace
    while engine.outstanding and time.monotonic() < end:
        await asyncio.sleep(0.01)
