"""BentoML: dynamic batches, two worker processes."""

import bentoml

from harness import workload


@bentoml.service(workers=2, traffic={"timeout": 60, "max_concurrency": 256})
class Generator:
    """Generates the images of a batch of requests."""

    def __init__(self) -> None:
        workload.warm_up()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000, route="/generate")
    def generate(self, requests: list[list[str]]) -> list[str]:
        """Return a PNG for each request, as Latin-1: the result of a batch may not be a file."""
        pngs = workload.generate_pngs([(model, int(seed), int(steps)) for model, seed, steps in requests])
        return [png.decode("latin-1") for png in pngs]
