"""What a cache before the service saves: the same hot URLs, asked of the service and through nginx (deploy/nginx.conf).

    python -m benchmarks cache [--repeats 3] [--seconds 3] [--clients 32]

- 500 seeds, the k-th of them asked for 1/k as often as the first (Zipf's law): of `dcgan` by its name, by its version,
  which never comes to mean another, and of `ddpm` in 20 plain steps.
- Every other client is like a browser: what it has had it asks for with its ETag, and may be told 304.
- One service, and the one nginx before it begins each time with nothing; both in turn, all of that `--repeats` times;
  medians. The load generator shares the machine.
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
OFTEN = [1 / (seed + 1) for seed in SEEDS]
COLUMNS = ("requests/s", "p50, ms", "p99, ms", "hit, %", "asked, %", "304, %")


def paths(url: str) -> dict[str, str]:
    """What is asked for, but for the seed, by what it is called here."""
    version = httpx.get(f"{url}/models/dcgan").json()["digest"][:12]
    return {
        "dcgan": "/generate?model=dcgan",
        "dcgan@version": f"/generate?model=dcgan@{version}",
        "ddpm, 20 steps": "/generate?model=ddpm&steps=20&guidance=1",
    }


def tags(url: str, path: str) -> list[str]:
    """The ETag of every seed; for none of them anything is drawn."""
    with httpx.Client(base_url=url, headers={"If-None-Match": "*"}) as client:
        return [client.get(f"{path}&seed={seed}").headers["etag"] for seed in SEEDS]


def client(number: int, path: str, known: list[str]) -> Callable[[], bytes]:
    """Requests of one client; one with an odd number keeps what it gets."""
    seeds = itertools.cycle(random.Random(number).choices(SEEDS, OFTEN, k=20_000))
    had = set[int]()

    def ask() -> bytes:
        seed = next(seeds)
        held = f"If-None-Match: {known[seed]}\r\n" if seed in had else ""
        if number % 2:
            had.add(seed)
        return f"GET {path}&seed={seed} HTTP/1.1\r\nHost: drawbridge\r\n{held}\r\n".encode()

    return ask


def figures(found: LoadResult) -> dict[str, float]:
    """What came of one run."""
    if found.failed:
        raise SystemExit(f"{found.failed} requests failed")
    centiles = statistics.quantiles(found.latencies, n=100)
    shown = (found.rate, 1e3 * centiles[49], 1e3 * centiles[98])
    return dict(zip(COLUMNS, shown, strict=False)) | {"304, %": 100 * found.not_modified / len(found.latencies)}


def hits(log: Path) -> dict[str, float]:
    """What the cache had without asking, and what it had and asked about, as its log has it."""
    said = Counter(json.loads(line)["cache"] for line in log.read_text().splitlines())
    return {"hit, %": 100 * said["HIT"] / said.total(), "asked, %": 100 * said["REVALIDATED"] / said.total()}


def measure(
    url: str, path: str, known: list[str], clients: int, seconds: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """One round: the service, and the cache before it."""

    def run(at: str) -> dict[str, float]:
        return figures(merge(run_load(at, [client(k, path, known) for k in range(clients)], seconds, warm=0.0)))

    yield "service", run(url)
    with nginx_cache(url) as (at, log):
        found = run(at)
        yield "nginx", found | hits(log)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cache", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=32)
    args = parser.parse_args()
    if NGINX is None:
        print("error: no nginx here; Debian's package nginx-light has one", file=sys.stderr)
        raise SystemExit(2)
    rounds: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with run_service(device="cpu") as (url, _):
        asked = [(name, path, tags(url, path)) for name, path in paths(url).items()]
        for k in range(args.repeats):
            for name, path, known in asked:
                for where, found in measure(url, path, known, args.clients, args.seconds):
                    rounds[name, where].append(found)
            print(f"round {k + 1} of {args.repeats} is done", file=sys.stderr)
    print(f"{args.clients} clients, medians of {args.repeats} rounds of {args.seconds:g} s")
    print(f"{'':26}" + "".join(f"{column:>12}" for column in COLUMNS))
    for (name, where), rows in rounds.items():
        row = {column: statistics.median(each[column] for each in rows) for column in rows[0]}
        shown = "".join(f"{row[column]:12,.2f}" if column in row else " " * 12 for column in COLUMNS)
        print(f"{name:16}{where:10}{shown}")


if __name__ == "__main__":
    main()
