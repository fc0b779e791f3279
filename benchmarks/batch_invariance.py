"""Batch invariance: responses under load compared with the bytes of each request alone.

    python -m benchmarks batch_invariance [--requests 10000]

A few hundred different requests to all models are each sent alone, to a service that does nothing else. Then random
ones of them are sent to another service, 1 to 64 at a time. The exit status is 1 if a byte differs.
"""

import argparse
import asyncio
import random
import sys

from harness.clients import LoadReport, http_client
from harness.expected import ExpectedRequest, expected_responses, random_urls
from harness.server import run_service

REQUESTS_PER_MODEL = 30
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)


async def send_together(url: str, report: LoadReport, count: int, source: random.Random) -> None:
    """Send `count` random requests with expected bytes, 1 to 64 at a time."""
    requests = list(report.expected)
    async with http_client(url) as client:
        while report.total < count:
            size = min(source.choice(CONCURRENCY), count - report.total)
            await asyncio.gather(*(report.send(client, source.choice(requests)) for _ in range(size)))


def main() -> None:
    """Print how many responses differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch_invariance", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    source = random.Random(0)
    report = LoadReport(
        expected_responses(lambda models: map(ExpectedRequest, random_urls(models, source, REQUESTS_PER_MODEL)))
    )
    with run_service(device="cpu") as (url, _):
        asyncio.run(send_together(url, report, args.requests, source))
    print(f"{len(report.expected)} different requests alone, then {report.total} of them, 1 to 64 at a time")
    print(f"{report.lost} differ{report.errors()}")
    sys.exit(1 if report.lost else 0)


if __name__ == "__main__":
    main()
