"""What the scheduler would make of a GPU: real policy, simulated steps.

    python -m benchmarks replay [--rates 1000 5000 20000] [--fixed 0.25 1.5] [--row 0.002 0.012]

No GPU was measured for this: a step is taken to cost so many milliseconds `--fixed` and so many for each `--row`, a
GAN's and a U-Net's. Requests for one image come at random (Poisson), nine in ten to the GAN and one to the U-Net in 20
steps, a tenth of these as bulk work. What is real is the policy, and the time that it takes: `us/request`.
"""

import argparse
import random
import statistics
import time
from dataclasses import dataclass

from service.engine.scheduler import Priority, Scheduler

SEATS = 128
STEPS = {"gan": 1, "unet": 20}
SECONDS = 4.0
"""Simulated."""


@dataclass(eq=False)
class Job:
    """A request for one image."""

    model: str
    came: float
    left: int


@dataclass
class Found:
    """What came of a rate."""

    latencies: dict[str, list[float]]
    rows: int
    steps: int
    late: int
    """Requests that were still there at the end."""
    policy: float
    """Real seconds in the scheduler."""


def simulate(rate: float, fixed: tuple[float, float], row: tuple[float, float]) -> Found:
    """`SECONDS` of arrivals at `rate` a second; costs in milliseconds, of the GAN and of the U-Net."""
    source = random.Random(0)
    costs = dict(zip(STEPS, zip(fixed, row, strict=True), strict=True))
    scheduler: Scheduler[Job] = Scheduler(STEPS, SEATS)
    found = Found({model: [] for model in STEPS}, 0, 0, 0, 0.0)
    clock, coming = 0.0, source.expovariate(rate)
    waiting = 0
    while clock < SECONDS:
        before = time.perf_counter()
        while coming <= clock:
            model = "gan" if source.random() < 0.9 else "unet"
            priority: Priority = "bulk" if model == "unet" and source.random() < 0.1 else "interactive"
            scheduler.add(model, Job(model, coming, STEPS[model]), 1, priority)
            waiting += 1
            coming += source.expovariate(rate)
        choice = scheduler.pick()
        found.policy += time.perf_counter() - before
        if choice is None:
            clock = coming
            continue
        model, riders = choice
        cost = (costs[model][0] + costs[model][1] * len(riders)) / 1000
        clock += cost
        found.rows, found.steps = found.rows + len(riders), found.steps + 1
        before = time.perf_counter()
        scheduler.charge(cost)
        for job, _ in riders:
            job.left -= 1
            if not job.left:
                scheduler.finish(job, 0)
                found.latencies[model].append(clock - job.came)
                waiting -= 1
        found.policy += time.perf_counter() - before
    found.late = waiting
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks replay", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 2000, 5000, 10000])
    parser.add_argument("--fixed", type=float, nargs=2, default=(0.25, 1.5), metavar="MS")
    parser.add_argument("--row", type=float, nargs=2, default=(0.002, 0.012), metavar="MS")
    args = parser.parse_args()
    print(f"{SECONDS:g} simulated seconds a line; {SEATS} seats; latencies in ms")
    names = ("asked/s", "done/s", "rows/step", "gan p50", "p99", "unet p50", "p99", "us/request")
    print("".join(f"{name:>{width}}" for name, width in zip(names, (9, 9, 11, 9, 8, 10, 8, 12), strict=True)))
    for rate in args.rates:
        found = simulate(rate, tuple(args.fixed), tuple(args.row))
        done = sum(map(len, found.latencies.values()))
        cells = ""
        for latencies, width in zip(found.latencies.values(), (9, 10), strict=True):
            hundredths = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
            cells += f"{1000 * hundredths[49]:{width}.2f}{1000 * hundredths[98]:8.2f}"
        spent = 1e6 * found.policy / max(1, done)
        print(f"{rate:9.0f}{done / SECONDS:9.0f}{found.rows / max(1, found.steps):11.1f}{cells}{spent:12.1f}")


if __name__ == "__main__":
    main()
