"""Ray Serve: dynamic batches, two replicas unless REPLICAS says otherwise."""

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
class Draw:
    """Draws what has come together."""

    def __init__(self) -> None:
        workload.warm_up()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def draw(self, asked: list[workload.ImageRequest]) -> list[bytes]:
        """A PNG for each."""
        return workload.generate_pngs(asked)

    async def __call__(self, request: Request) -> Any:
        """One request."""
        one = await request.json()
        return Response(await self.draw((one["model"], one["seed"], one["steps"])), media_type="image/png")


if __name__ == "__main__":
    serve.start(http_options={"port": int(os.environ["PORT"])})
    serve.run(Draw.bind(), route_prefix="/generate")
    while True:
        time.sleep(1)
