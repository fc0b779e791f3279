"""Who calls `Engine.turn()`.

On CPU the event loop itself does: one turn of the loop reads every ready socket, then the engine makes one step for all
that came in. Nothing is handed between threads, and the running step is the batching window. On a GPU a thread of its
own does, since it mostly waits for the device, and the loop can answer sockets meanwhile.
"""

import asyncio
import threading
import time
from typing import Protocol

from service.engine.engine import Engine


class Driver(Protocol):
    """Calls turns from `start` to `stop`."""

    async def start(self) -> None:
        """Begin to call turns."""

    async def stop(self, grace: float) -> None:
        """Let the engine finish what it accepted, for at most `grace` seconds; end the rest."""


class LoopDriver:
    """Turns on the event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def start(self) -> None:
        self.ready = asyncio.Event()
        self.engine.wake = self.ready.set
        self.task = asyncio.create_task(self._run(), name="engine")

    async def stop(self, grace: float) -> None:
        await _drained(self.engine, grace)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.engine.abandon()

    async def _run(self) -> None:
        while True:
            if self.engine.turn():
                await asyncio.sleep(0)
            else:
                self.ready.clear()
                await self.ready.wait()


class ThreadDriver:
    """Turns on a thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ready = threading.Event()
        self.running = True
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def start(self) -> None:
        self.engine.wake = self.ready.set
        self.thread.start()

    async def stop(self, grace: float) -> None:
        await _drained(self.engine, grace)
        self.running = False
        self.ready.set()
        await asyncio.to_thread(self.thread.join)
        self.engine.abandon()

    def _run(self) -> None:
        while self.running:
            if not self.engine.turn():
                self.ready.wait()
                self.ready.clear()


async def _drained(engine: Engine, grace: float) -> None:
    """Return when the engine has nothing left to draw, or `grace` seconds have gone."""
    engine.stop()
    end = time.monotonic() + grace
    while engine.outstanding and time.monotonic() < end:
        await asyncio.sleep(0.01)
