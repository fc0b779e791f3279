"""LitServe: FastAPI in front, dynamic batches, two worker processes."""

import os
from typing import Any

import litserve

from harness import workload


class Draw(litserve.LitAPI):  # type: ignore[misc]
    """Draws what has come together."""

    def setup(self, device: str) -> None:
        """Load everything."""
        workload.warm_up()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads the annotation as a schema
        """A request's body."""
        return request["model"], request["seed"], request["steps"]

    def predict(self, x: Any) -> list[bytes]:
        """A PNG for each."""
        return workload.generate_pngs(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """They are apart already."""
        return output

    def encode_response(self, output: bytes) -> dict[str, str]:
        """As Latin-1: of a batch, each answer is JSON."""
        return {"png": output.decode("latin-1")}


if __name__ == "__main__":
    api = Draw(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
