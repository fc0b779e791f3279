"""Bulk requests: their rate, their memory, and the latency of single requests beside them.

    python -m benchmarks bulk [--repeats 5]

- One request for 1,000 images of `dcgan`, streamed as zip and as npz, beside a single-threaded process that generates
  and packs as many without a server, in batches of 16 and of 32. The service has one worker.
- Requests for one image of `dcgan`, one at a time, while 8 clients request 16 images each of `ddpm` with priority
  `bulk`: their latency in steps of that batch.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from harness.clients import background_clients
from harness.load import build_request, run_load
from harness.server import ROOT, children, run_service

COUNT = 1000
BULK_CLIENTS = 8
BULK = "/generate?model=ddpm&digit=3&n=16&priority=bulk&guidance=1&format=npz"
OFFLINE = """
import sys, time
import numpy as np
import torch
from harness import workload
from models.base import sample
from models.pixels import to_pixels
from service.codecs.formats import IMAGE_FORMATS, ImageBatch
count, name, batch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
encode = next(format_.encode for format_ in IMAGE_FORMATS if format_.name == name)
family = workload.prepared_model("dcgan")
for _ in range(3):
    started_at = time.perf_counter()
    parts = []
    with torch.inference_mode():
        for first in range(0, count, batch):
            index = torch.arange(first, min(first + batch, count))
            x = sample(family, torch.zeros_like(index), index, torch.zeros(len(index), 0), steps=1)
            parts.append(to_pixels(x).numpy())
    encode(ImageBatch(np.concatenate(parts), np.full(count, -1), {}))
    seconds = time.perf_counter() - started_at
print(count / seconds)
"""


def offline_rate(format_: str, batch: int) -> float:
    """Return the images per second without a server, after warm-up."""
    command = [sys.executable, "-c", OFFLINE, str(COUNT), format_, str(batch)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def streamed_rate(client: httpx.Client, format_: str) -> float:
    """Return the images per second of one request."""
    started_at = time.perf_counter()
    with client.stream("POST", f"/generate?model=dcgan&n={COUNT}&seed=0&format={format_}") as response:
        response.raise_for_status()
        for _ in response.iter_raw():
            pass
    return COUNT / (time.perf_counter() - started_at)


def peak_memory(pid: int) -> int:
    """Return the largest resident memory that a process has had, in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def latencies_beside_bulk(url: str, seconds: float) -> list[float]:
    """Return the sorted latencies, in milliseconds, of single requests beside bulk requests."""

    async def send_bulk(client: httpx.AsyncClient, _: object) -> None:
        await client.post(BULK)

    with background_clients(url, [send_bulk] * BULK_CLIENTS, seed=0):
        time.sleep(2)
        (result,) = run_load(url, [lambda: build_request("/generate", "model=dcgan&seed=1")], seconds)
    return sorted(1000 * latency for latency in result.latencies)


def step_milliseconds(url: str) -> float:
    """Return the milliseconds of a step of 16 rows, from requests that are alone."""
    requests = [lambda: build_request("/generate", "model=ddpm&n=16&guidance=1&steps=40")]
    return 1000 * statistics.median(run_load(url, requests, 4.0)[0].latencies) / 40


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks bulk", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with run_service(device="cpu", workers=1) as (url, pid), httpx.Client(base_url=url, timeout=60) as client:
        (worker,) = children(pid)
        print(f"{COUNT} images of dcgan in one request, images/s, medians of {args.repeats}")
        print(f"{'':6}{'batch':>6}{'streamed':>10}{'offline':>10}{'ratio':>8}{'worker, MB':>12}")
        streamed_rate(client, "npz")
        for format_, batch in itertools.product(("zip", "npz"), (16, 32)):
            pairs = [(streamed_rate(client, format_), offline_rate(format_, batch)) for _ in range(args.repeats)]
            streamed, offline = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{format_:6}{batch:6}{streamed:10.0f}{offline:10.0f}{ratio:8.2f}{peak_memory(worker):12d}")
        latencies, step = latencies_beside_bulk(url, 10.0), step_milliseconds(url)
    print(f"\none image of dcgan at a time beside bulk ddpm with steps of {step:.1f} ms; {len(latencies)} requests")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        latency = latencies[int(share * (len(latencies) - 1))]
        print(f"{name}: {latency:.1f} ms, {latency / step:.2f} steps")


if __name__ == "__main__":
    main()
