"""Between two engine steps the event loop reads sockets and starts the handlers of new requests."""

import asyncio
import socket
from typing import cast

import uvloop

from service.engine.engine import Engine
from service.engine.loops import EventLoopEngine


class StepCounter:
    """An engine that records how many requests have arrived at each step.

    The client sends a request during the first step, and another one after that step's notifications.
    """

    outstanding = 0

    def __init__(self, client: socket.socket) -> None:
        self.client, self.arrived = client, 0
        self.arrived_by_step: list[int] = []

    def step(self) -> bool:
        self.arrived_by_step.append(self.arrived)
        if len(self.arrived_by_step) == 1:
            self.client.sendall(b"a request")
            asyncio.get_running_loop().call_soon(self.client.sendall, b"another")
        return len(self.arrived_by_step) < 3

    def stop(self) -> None:
        """There is nothing to end."""

    abandon = stop


def test_requests_that_arrive_during_or_right_after_a_step_are_in_the_next_one() -> None:
    async def main() -> list[int]:
        client, server = socket.socketpair()
        with client, server:
            engine = StepCounter(client)

            async def arrive() -> None:
                engine.arrived += 1

            class Connection(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    self.task = asyncio.ensure_future(arrive())  # as a server starts a handler

            transport, _ = await asyncio.get_running_loop().create_connection(Connection, sock=server)
            loop = EventLoopEngine(cast(Engine, engine))
            await loop.start()
            await asyncio.sleep(0.05)
            await loop.stop(1)
            transport.close()
            return engine.arrived_by_step

    assert uvloop.run(main()) == [0, 2, 2]
