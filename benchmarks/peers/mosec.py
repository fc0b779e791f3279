"""mosec: a server in Rust, dynamic batches, two worker processes."""

import json
from typing import Any

from mosec import Server, Worker

from harness import workload


class Generator(Worker):
    """Generates the images of a batch of requests."""

    def __init__(self) -> None:
        workload.warm_up()

    def deserialize(self, data: bytes) -> Any:
        """Parse a request's body."""
        return json.loads(data)

    def forward(self, data: list[Any]) -> list[bytes]:
        """Return a PNG for each request."""
        return workload.generate_pngs([(request["model"], request["seed"], request["steps"]) for request in data])

    def serialize(self, data: bytes) -> bytes:
        """Return the image, which is bytes already."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Generator, num=2, max_batch_size=32, max_wait_time=2, timeout=60)
    server.run()
