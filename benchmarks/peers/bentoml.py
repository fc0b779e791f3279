"""BentoML: dynamic batches, two worker processes."""

from pathlib import Path

import bentoml

from harness import workload


@bentoml.service(workers=2, traffic={"timeout": 60, "max_concurrency": 256})
class Draw:
    """Draws what has come together."""

    def __init__(self) -> None:
        workload.warm_up()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60_000, route="/generate")
    def generate(self, asked: list[list[str]]) -> list[str]:
        """A PNG for each, as Latin-1: what is batched may not be a file."""
        found = workload.generate_pngs([(str(model), int(seed), int(steps)) for model, seed, steps in asked])
        return [png.decode("latin-1") for png in found]


HERE = Path(__file__)
