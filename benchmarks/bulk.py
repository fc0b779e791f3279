"""Bulk work: how fast it is, how much memory it takes, and what it does to a single request beside it.

    python -m benchmarks bulk [--repeats 5]

- One request for 1,000 images of `dcgan`, streamed as zip and as npz, beside a process of one thread that draws and
  packs as many without a server, in batches of 16 and of 32. One worker, so that there is one of either.
- A request for one image of `dcgan` at a time, while 8 callers ask for 16 images each of `ddpm` as `bulk`: its latency
  in steps of that batch.
"""

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from harness.load import build_request, run_load
from harness.server import ROOT, run_service

COUNT = 1000
OFFLINE = """
import sys, time
import numpy as np
import torch
from harness import workload
from models.base import sample
from models.pixels import to_uint8
from service.codecs.images import IMAGE_FORMATS, ImageBatch
count, kind, batch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
pack = next(format_.encode for format_ in IMAGE_FORMATS if format_.name == kind)
family = workload.prepared_model("dcgan")
for _ in range(3):
    before = time.perf_counter()
    parts = []
    with torch.inference_mode():
        for first in range(0, count, batch):
            index = torch.arange(first, min(first + batch, count))
            x = sample(family, torch.zeros_like(index), index, torch.zeros(len(index), 0), steps=1)
            parts.append(to_uint8(x)[:, 0].numpy())
    pack(ImageBatch(np.concatenate(parts), np.full(count, -1), {}))
    seconds = time.perf_counter() - before
print(count / seconds)
"""


def offline(kind: str, batch: int) -> float:
    """Images a second without a server, once warm."""
    command = [sys.executable, "-c", OFFLINE, str(COUNT), kind, str(batch)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def streamed(client: httpx.Client, kind: str) -> float:
    """Images a second of one request."""
    before = time.perf_counter()
    with client.stream("POST", f"/generate?model=dcgan&n={COUNT}&seed=0&format={kind}") as answer:
        answer.raise_for_status()
        for _ in answer.iter_raw():
            pass
    return COUNT / (time.perf_counter() - before)


def peak() -> int:
    """Megabytes that the one worker has had at most."""
    found = subprocess.run(
        ["pgrep", "-f", "service.server.worker"], capture_output=True, text=True, check=True
    ).stdout.split()
    lines = Path(f"/proc/{found[-1]}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


async def saturate(url: str, end: asyncio.Event) -> None:
    """Ask for bulk work until it is the end."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def caller() -> None:
            while not end.is_set():
                await client.post("/generate?model=ddpm&digit=3&n=16&priority=bulk&guidance=1&format=npz")

        await asyncio.gather(*(caller() for _ in range(8)))


async def beside(url: str, seconds: float) -> list[float]:
    """Milliseconds of single requests beside bulk work, sorted."""
    end = asyncio.Event()
    bulk = asyncio.create_task(saturate(url, end))
    await asyncio.sleep(2)
    requests = [lambda: build_request("/generate", "model=dcgan&seed=1")]
    (found,) = await asyncio.to_thread(run_load, url, requests, seconds)
    end.set()
    await bulk
    return sorted(1000 * each for each in found.latencies)


def step(url: str) -> float:
    """Milliseconds of a step of 16 rows, by requests that ride alone."""
    requests = [lambda: build_request("/generate", "model=ddpm&n=16&guidance=1&steps=40")]
    return 1000 * statistics.median(run_load(url, requests, 4.0)[0].latencies) / 40


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks bulk", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with run_service(device="cpu", workers=1) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        print(f"{COUNT} images of dcgan in one request, images/s, medians of {args.repeats}")
        print(f"{'':6}{'batch':>6}{'streamed':>10}{'offline':>10}{'ratio':>8}{'worker, MB':>12}")
        streamed(client, "npz")
        for kind, batch in itertools.product(("zip", "npz"), (16, 32)):
            pairs = [(streamed(client, kind), offline(kind, batch)) for _ in range(args.repeats)]
            ours, others = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{kind:6}{batch:6}{ours:10.0f}{others:10.0f}{ratio:8.2f}{peak():12d}")
        found, one = asyncio.run(beside(url, 10.0)), step(url)
    print(f"\none image of dcgan at a time beside bulk ddpm, a step of which takes {one:.1f} ms; {len(found)} requests")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        latency = found[int(share * (len(found) - 1))]
        print(f"{name}: {latency:.1f} ms, {latency / one:.2f} steps")


if __name__ == "__main__":
    main()
