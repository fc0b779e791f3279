"""What the scheduler would make of a GPU, and what a fleet of them would need beside it.

    python -m benchmarks capacity_model [--fixed 0.25 1.5] [--row 0.002 0.012] [--rates 1000 5000] [--fleet 1 10 1000] ...

No GPU was measured for this: a step is taken to cost so many milliseconds `--fixed` and so many for each `--row`, a
GAN's and a U-Net's.

First real policy and simulated steps. Requests for one image come at random (Poisson), nine in ten to the GAN and one
to the U-Net in 20 steps, a tenth of these as bulk work. What is real is the policy, and the time that it takes:
`us/request`.

Then the parts of a request that need no GPU, measured (`benchmarks/overhead.py`), and what follows for W1 (the GAN alone)
and W2 (the U-Net alone) on so many GPUs: requests a second that each part could do if the others were free. A worker is
a core, since its Python has one lock; there is one for each GPU, a front for each machine, and with Ray Serve a proxy.
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass

from benchmarks.engine import MODELS, encode
from benchmarks.overhead import Costs, Parts, measured
from service.app import MAX_BATCH_SIZE as DEVICES
from service.engine.scheduler import Priority, Scheduler

SEATS = DEVICES["cuda"]
SECONDS = 4.0
"""Simulated."""
POLICY = 5000
"""Requests by which a workload's policy is measured."""
PROXY = 3500.0
"""Requests a second of one proxy of Ray Serve before 8 replicas that do nothing, on 8 cores: 3,000 to 4,000 by its
documentation (docs.ray.io/en/latest/serve/performance.html)."""


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


def simulate(rate: float, costs: Costs, share: float = 0.1, seconds: float = SECONDS) -> Found:
    """`seconds` of arrivals at `rate` a second, of which `share` are for the U-Net."""
    source = random.Random(0)
    scheduler: Scheduler[Job] = Scheduler(dict.fromkeys(MODELS, SEATS))
    found = Found({model: [] for model in MODELS}, 0, 0, 0, 0.0)
    clock, coming = 0.0, source.expovariate(rate)
    waiting = 0
    while clock < seconds:
        before = time.perf_counter()
        while coming <= clock:
            model = "ddpm" if source.random() < share else "dcgan"
            priority: Priority = "bulk" if model == "ddpm" and source.random() < 0.1 else "interactive"
            scheduler.add(model, Job(model, coming, MODELS[model]), 1, priority)
            waiting += 1
            coming += source.expovariate(rate)
        choice = scheduler.schedule()
        found.policy += time.perf_counter() - before
        if choice is None:
            clock = coming
            continue
        model, riders = choice
        cost = step(costs, model, len(riders))
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


def step(costs: Costs, model: str, rows: int) -> float:
    """Seconds that a step is taken to take."""
    fixed, row = costs[model]
    return (fixed + row * rows) / 1000


def policy(costs: Costs, model: str, rate: float) -> float:
    """Real microseconds of the scheduler for a request, where all are for `model` and keep the device busy."""
    found = simulate(rate, costs, share=float(model == "ddpm"), seconds=POLICY / rate)
    return 1e6 * found.policy / len(found.latencies[model])


@dataclass(frozen=True)
class Fleet:
    """Requests a second that each part of a fleet could do, and what that takes."""

    gpus: float
    workers: float
    cores: float
    """Beside each GPU, if workers were to keep it busy."""
    fronts: float
    """If each request comes over a connection of its own; kept ones cost a front nothing."""
    proxies: float
    network: float
    """Bits a second of what GPUs and workers do together."""

    def first(self, *between: str) -> str:
        """What is exhausted before all else: GPUs, workers, or what is `between` them and callers."""
        return min(("gpus", "workers", *between), key=lambda part: float(getattr(self, part)))


def project(model: str, count: int, costs: Costs, parts: Parts, machine: int, proxy: float) -> Fleet:
    """What `count` GPUs, so many a `machine`, would do of one model in full steps."""
    machines = math.ceil(count / machine)
    gpu = SEATS / step(costs, model, SEATS) / MODELS[model]
    worker = 1e6 / parts.worker[model]
    bits = 8 * parts.traffic * count * min(gpu, worker)
    return Fleet(count * gpu, count * worker, gpu / worker, machines * 1e6 / parts.front, machines * proxy, bits)


def print_policy(costs: Costs, rates: list[float]) -> None:
    """The table of simulated steps."""
    print(f"{SECONDS:g} simulated seconds a line; {SEATS} seats; latencies in ms")
    names = ("asked/s", "done/s", "rows/step", "dcgan p50", "p99", "ddpm p50", "p99", "us/request")
    print("".join(f"{name:>{width}}" for name, width in zip(names, (9, 9, 11, 11, 8, 10, 8, 12), strict=True)))
    for rate in rates:
        found = simulate(rate, costs)
        done = sum(map(len, found.latencies.values()))
        cells = ""
        for latencies, width in zip(found.latencies.values(), (11, 10), strict=True):
            hundredths = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
            cells += f"{1000 * hundredths[49]:{width}.2f}{1000 * hundredths[98]:8.2f}"
        spent = 1e6 * found.policy / max(1, done)
        print(f"{rate:9.0f}{done / SECONDS:9.0f}{found.rows / max(1, found.steps):11.1f}{cells}{spent:12.1f}")


def print_parts(costs: Costs, parts: Parts) -> None:
    """The table of what was measured."""
    print("\nCPU microseconds of one request, measured")
    print(f"{'':8}{'worker':>10}{'of it: PNG':>12}{'policy':>8}{'the rest':>10}")
    encoding = encode()
    for name, (model, whole) in zip(("W1", "W2"), parts.worker.items(), strict=True):
        deciding = policy(costs, model, SEATS / step(costs, model, SEATS) / MODELS[model])
        rest = whole - encoding - deciding
        print(f"{name:8}{whole:10.0f}{encoding:12.0f}{deciding:8.0f}{rest:10.0f}")
    print(f"front: {parts.front:.0f} a connection; {parts.traffic} bytes a request and its answer")


def print_fleet(costs: Costs, parts: Parts, counts: list[int], machine: int, proxy: float) -> None:
    """The table of what follows."""
    print(f"\nrequests/s that each part could do; {machine} GPUs a machine; a proxy of Ray Serve {proxy:g}")
    names = ("GPUs", "the GPUs", "workers", "cores/GPU", "fronts", "proxies", "Gbit/s", "first", "first on Ray")
    widths = (8, 13, 11, 11, 11, 10, 9, 10, 14)
    print(" " * 4 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
    for name, model in zip(("W1", "W2"), costs, strict=True):
        for count in counts:
            fleet = project(model, count, costs, parts, machine, proxy)
            cells = f"{fleet.gpus:13,.0f}{fleet.workers:11,.0f}{fleet.cores:11.1f}{fleet.fronts:11,.0f}"
            cells += f"{fleet.proxies:10,.0f}{fleet.network / 1e9:9.3f}"
            print(f"{name:4}{count:8}{cells}{fleet.first('fronts'):>10}{fleet.first('proxies'):>14}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks capacity_model")
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 2000, 5000, 10000])
    parser.add_argument("--fixed", type=float, nargs=2, default=(0.25, 1.5), metavar="MS")
    parser.add_argument("--row", type=float, nargs=2, default=(0.002, 0.012), metavar="MS")
    parser.add_argument("--fleet", type=int, nargs="+", default=[1, 10, 1000], metavar="GPUS")
    parser.add_argument("--machine", type=int, default=8, metavar="GPUS", help="of one machine")
    parser.add_argument("--proxy", type=float, default=PROXY, help="requests/s of one of Ray Serve's")
    parser.add_argument("--seconds", type=float, default=3.0, help="for which each workload is measured")
    args = parser.parse_args()
    costs = dict(zip(MODELS, zip(args.fixed, args.row, strict=True), strict=True))
    print_policy(costs, args.rates)
    parts = measured(costs, SEATS, args.seconds)
    print_parts(costs, parts)
    print_fleet(costs, parts, args.fleet, args.machine, args.proxy)


if __name__ == "__main__":
    main()
