"""Between two turns the event loop gets as far as it must."""

import asyncio
import socket
from typing import cast

import uvloop

from service.engine.engine import Engine
from service.engine.loops import EventLoopEngine


class Turns:
    """An engine that counts what each turn finds. Somebody writes during its first, and once that is answered."""

    outstanding = 0

    def __init__(self, caller: socket.socket) -> None:
        self.caller, self.here = caller, 0
        self.found: list[int] = []

    def step(self) -> bool:
        self.found.append(self.here)
        if len(self.found) == 1:
            self.caller.sendall(b"a request")
            asyncio.get_running_loop().call_soon(self.caller.sendall, b"another")
        return len(self.found) < 3

    def stop(self) -> None:
        """It holds nothing."""

    abandon = stop


def test_what_comes_during_a_step_or_as_it_is_answered_rides_the_next() -> None:
    async def main() -> list[int]:
        caller, here = socket.socketpair()
        with caller, here:
            turns = Turns(caller)

            async def arrive() -> None:
                turns.here += 1

            class Connection(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    self.task = asyncio.ensure_future(arrive())  # as a server begins to answer

            transport, _ = await asyncio.get_running_loop().create_connection(Connection, sock=here)
            driver = EventLoopEngine(cast(Engine, turns))
            await driver.start()
            await asyncio.sleep(0.05)
            await driver.stop(1)
            transport.close()
            return turns.found

    assert uvloop.run(main()) == [0, 2, 2]
