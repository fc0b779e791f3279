"""LitServe: a FastAPI server, dynamic batches, two worker processes."""

import os
from typing import Any

import litserve

from harness import workload


class Generator(litserve.LitAPI):  # type: ignore[misc]
    """Generates the images of a batch of requests."""

    def setup(self, device: str) -> None:
        """Load the weights."""
        workload.warm_up()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads the annotation as a schema
        """Return the parameters in a request's body."""
        return request["model"], request["seed"], request["steps"]

    def predict(self, x: Any) -> list[bytes]:
        """Return a PNG for each request."""
        return workload.generate_pngs(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Return the images, which are separate already."""
        return output

    def encode_response(self, output: bytes) -> dict[str, str]:
        """Return the image as Latin-1: with batches, responses are JSON."""
        return {"png": output.decode("latin-1")}


if __name__ == "__main__":
    api = Generator(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator=workload.DEVICE.type, workers_per_device=2)
    server.run(port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
