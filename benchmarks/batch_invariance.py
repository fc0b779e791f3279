"""Company changes nothing: requests under load against the bytes that each had alone.

    python -m benchmarks batch_invariance [--requests 10000]

A few hundred different requests of all models are each sent alone, to a service that does nothing else. Then as many as
asked are drawn from them at random and sent to another service by 1 to 64 callers at a time. Exit status 1 if a byte
differs.
"""

import argparse
import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import httpx

from harness.server import run_service

EACH = 30
"""Different requests of each model."""


def requests(
    models: list[dict[str, Any]],
    source: random.Random,
    each: int = EACH,
    formats: Sequence[str] = ("png", "npz"),
    counts: Sequence[int] = (1, 1, 1, 2, 5),
    steps: int = 12,
) -> list[str]:
    """URLs of `each` different requests of all `models`, as GET /models tells of them, in up to `steps` above the
    fewest."""
    urls = []
    for model in models:
        takes = model["takes"]
        for _ in range(each):
            query: list[tuple[str, object]] = [("model", model["name"]), ("seed", source.randrange(2**53))]
            query += [("first", source.choice((0, 0, 7, 2**40))), ("n", source.choice(counts))]
            if "digit" in takes and source.random() < 0.7:
                query.append(("digit", source.randrange(10)))
            for word in ("sampler", "prior"):
                if word in takes:
                    query.append((word, source.choice(takes[word]["one_of"])))
            if "steps" in takes:
                least = takes["steps"]["minimum"]
                query.append(("steps", source.randint(least, least + steps)))
            if "guidance" in takes:
                query.append(("guidance", source.choice((1.0, takes["guidance"]["default"], 3.0))))
            urls.append(f"/generate?{urlencode([*query, ('format', source.choice(formats))])}")
    return urls


async def ask(client: httpx.AsyncClient, url: str) -> bytes:
    """The digest of what came."""
    answer = await client.post(url)
    answer.raise_for_status()
    return hashlib.sha256(answer.content).digest()


async def alone(base: str, source: random.Random) -> dict[str, bytes]:
    """What each request gives by itself."""
    async with httpx.AsyncClient(base_url=base, timeout=120) as client:
        urls = requests((await client.get("/models")).json()["models"], source)
        return {url: await ask(client, url) for url in urls}


async def together(base: str, truth: dict[str, bytes], count: int, source: random.Random) -> Counter[str]:
    """How many of `count` requests, by 1 to 64 callers at a time, gave other bytes, by model; all of them under ``."""
    found: Counter[str] = Counter()
    urls = list(truth)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        while found[""] < count:
            callers = min(source.choice((1, 2, 4, 8, 16, 32, 64)), count - found[""])
            chosen = [source.choice(urls) for _ in range(callers)]
            for url, digest in zip(chosen, await asyncio.gather(*(ask(client, url) for url in chosen)), strict=True):
                found[""] += 1
                if digest != truth[url]:
                    found[url.split("model=")[1].split("&")[0]] += 1
    return found


def main() -> None:
    """Print how many differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch_invariance", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    source = random.Random(0)
    with run_service(device="cpu") as (url, _):
        truth = asyncio.run(alone(url, source))
    with run_service(device="cpu") as (url, _):
        found = asyncio.run(together(url, truth, args.requests, source))
    total = found.pop("")
    print(f"{len(truth)} different requests, each alone; then {total} of them by 1 to 64 callers at a time")
    print(f"{found.total()} differ" + "".join(f"; {model}: {count}" for model, count in found.items()))
    sys.exit(1 if found.total() else 0)


if __name__ == "__main__":
    main()
