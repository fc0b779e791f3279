"""A cache in front of the service: the same popular URLs from the service and through nginx (deploy/nginx.conf).

    python -m benchmarks cache [--repeats 3] [--seconds 3] [--clients 32]

- 500 seeds, the k-th requested 1/k as often as the first (Zipf's law): of `dcgan` by its name, of `dcgan` by its
  version, which never changes its meaning, and of `ddpm` in 20 steps without guidance.
- Every other client behaves like a browser: it requests again with the ETag, and may get 304.
- One service, and one nginx with an empty cache in front of it, in turn; all of that `--repeats` times; medians. The
  load generator shares the machine.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from harness.load import LoadResult, merge, run_load
from harness.server import NGINX, nginx_cache, run_service

SEEDS = range(500)
WEIGHTS = [1 / (seed + 1) for seed in SEEDS]
COLUMNS = ("requests/s", "p50, ms", "p99, ms", "hit, %", "revalidated, %", "304, %")


def paths(url: str) -> dict[str, str]:
    """Return the requested paths without seeds, by their names in the table."""
    version = httpx.get(f"{url}/models/dcgan").json()["digest"][:12]
    return {
        "dcgan": "/generate?model=dcgan",
        "dcgan@version": f"/generate?model=dcgan@{version}",
        "ddpm, 20 steps": "/generate?model=ddpm&steps=20&guidance=1",
    }


def etags(url: str, path: str) -> list[str]:
    """Return the ETag for every seed. The service generates nothing for them."""
    with httpx.Client(base_url=url, headers={"If-None-Match": "*"}) as client:
        return [client.get(f"{path}&seed={seed}").headers["etag"] for seed in SEEDS]


def client(number: int, path: str, tags: list[str]) -> Callable[[], bytes]:
    """Return the requests of one client. A client with an odd number keeps what it gets."""
    seeds = itertools.cycle(random.Random(number).choices(SEEDS, WEIGHTS, k=20_000))
    cached = set[int]()

    def next_request() -> bytes:
        seed = next(seeds)
        condition = f"If-None-Match: {tags[seed]}\r\n" if seed in cached else ""
        if number % 2:
            cached.add(seed)
        return f"GET {path}&seed={seed} HTTP/1.1\r\nHost: drawbridge\r\n{condition}\r\n".encode()

    return next_request


def figures(result: LoadResult) -> dict[str, float]:
    """Return the columns that clients see."""
    if result.failed:
        raise SystemExit(f"{result.failed} requests failed")
    percentiles = statistics.quantiles(result.latencies, n=100)
    values = (result.rate, 1e3 * percentiles[49], 1e3 * percentiles[98])
    return dict(zip(COLUMNS, values, strict=False)) | {"304, %": 100 * result.not_modified / len(result.latencies)}


def hit_rates(log: Path) -> dict[str, float]:
    """Return the columns that nginx logs: responses from the cache without and with a question to the service."""
    statuses = Counter(json.loads(line)["cache"] for line in log.read_text().splitlines())
    total = statuses.total()
    return {"hit, %": 100 * statuses["HIT"] / total, "revalidated, %": 100 * statuses["REVALIDATED"] / total}


def measure(
    url: str, path: str, tags: list[str], clients: int, seconds: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure the service, then the cache in front of it."""

    def run(at: str) -> dict[str, float]:
        return figures(merge(run_load(at, [client(k, path, tags) for k in range(clients)], seconds, warm=0.0)))

    yield "service", run(url)
    with nginx_cache(url) as (at, log):
        row = run(at)
        yield "nginx", row | hit_rates(log)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cache", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=32)
    args = parser.parse_args()
    if NGINX is None:
        print("error: nginx is not installed; Debian's package is nginx-light", file=sys.stderr)
        raise SystemExit(2)
    rounds: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with run_service(device="cpu") as (url, _):
        requests = [(name, path, etags(url, path)) for name, path in paths(url).items()]
        for k in range(args.repeats):
            for name, path, tags in requests:
                for server, row in measure(url, path, tags, args.clients, args.seconds):
                    rounds[name, server].append(row)
            print(f"round {k + 1} of {args.repeats} is done", file=sys.stderr)
    print(f"{args.clients} clients, medians of {args.repeats} rounds of {args.seconds:g} s")
    print(f"{'':26}" + "".join(f"{column:>16}" for column in COLUMNS))
    for (name, server), rows in rounds.items():
        row = {column: statistics.median(each[column] for each in rows) for column in rows[0]}
        cells = "".join(f"{row[column]:16,.2f}" if column in row else " " * 16 for column in COLUMNS)
        print(f"{name:16}{server:10}{cells}")


if __name__ == "__main__":
    main()
