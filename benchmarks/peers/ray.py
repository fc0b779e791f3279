"""Ray Serve: dynamic batches, two replicas, or as many as REPLICAS says."""

import os
import time
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from harness import workload


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", "2")),
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0.5},
)
class Generator:
    """Generates the images of a batch of requests."""

    def __init__(self) -> None:
        workload.warm_up()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def generate(self, requests: list[workload.ImageRequest]) -> list[bytes]:
        """Return a PNG for each request."""
        return workload.generate_pngs(requests)

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        body = await request.json()
        png = await self.generate((body["model"], body["seed"], body["steps"]))
        return Response(png, media_type="image/png")


if __name__ == "__main__":
    serve.start(http_options={"port": int(os.environ["PORT"])})
    serve.run(Generator.bind(), route_prefix="/generate")
    while True:
        time.sleep(1)
