"""mosec: a Rust front, dynamic batches, a process a core."""

import json
from typing import Any

from mosec import Server, Worker

from harness import workload


class Draw(Worker):
    """Draws what has come together."""

    def __init__(self) -> None:
        workload.warm_up()

    def deserialize(self, data: bytes) -> Any:
        """A request's body."""
        return json.loads(data)

    def forward(self, data: list[Any]) -> list[bytes]:
        """A PNG for each."""
        return workload.generate_pngs([(one["model"], one["seed"], one["steps"]) for one in data])

    def serialize(self, data: bytes) -> bytes:
        """It is bytes already."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Draw, num=2, max_batch_size=32, max_wait_time=2, timeout=60)
    server.run()
