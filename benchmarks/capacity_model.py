"""A model of capacity: what the scheduler achieves on an assumed GPU, and what a fleet of GPUs needs beside it.

    python -m benchmarks capacity_model [--fixed 0.25 1.5] [--row 0.002 0.012] [--rates 1000 5000] [--fleet 1 10] ...

No GPU was measured for this. A step is assumed to take `--fixed` milliseconds and `--row` milliseconds for each row;
the two numbers of each are for a GAN and for a U-Net.

The first table simulates the steps and runs the real scheduler. Requests for one image arrive at random (Poisson): nine
in ten for the GAN, one in ten for the U-Net in 20 steps, and a tenth of the latter with priority `bulk`. The column
`us/request` is the real time of the scheduler.

The other tables are measured (`benchmarks/overhead.py`): the parts of a request that need no GPU, and the requests per
second that each part of a fleet could do if the others were free, for W1 (the GAN alone) and W2 (the U-Net alone). A
worker is one core, because its Python has one lock. Each GPU has a worker, each machine a supervisor and, with Ray
Serve, a proxy.
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.engine import MODELS, encode
from benchmarks.overhead import Overhead, StepCosts, measure
from service.engine.scheduler import Priority, Scheduler
from service.engine.slot_runner import TILE_ROWS

BATCH_SIZE = TILE_ROWS
SIMULATED_SECONDS = 4.0
SCHEDULED_REQUESTS = 5000
"""Requests from which the scheduler's time for a workload is measured."""
PROXY_RATE = 3500.0
"""Requests per second of one Ray Serve proxy in front of 8 replicas that do nothing, on 8 cores: 3,000 to 4,000
according to its documentation (docs.ray.io/en/latest/serve/performance.html)."""


@dataclass(eq=False)
class Job:
    """A request for one image."""

    model: str
    arrived_at: float
    remaining_steps: int


@dataclass
class Simulation:
    """The result of a simulation at one rate of arrivals."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {model: [] for model in MODELS})
    """Simulated seconds of every finished request, by model."""
    rows: int = 0
    steps: int = 0
    scheduler_seconds: float = 0.0
    """Real seconds in the scheduler."""

    @property
    def finished(self) -> int:
        return sum(map(len, self.latencies.values()))


def simulate(rate: float, costs: StepCosts, unet_share: float = 0.1, seconds: float = SIMULATED_SECONDS) -> Simulation:
    """Simulate `seconds` of arrivals at `rate` requests per second, of which `unet_share` are for the U-Net."""
    source = random.Random(0)
    scheduler: Scheduler[Job] = Scheduler(dict.fromkeys(MODELS, BATCH_SIZE))
    result = Simulation()
    clock, next_arrival = 0.0, source.expovariate(rate)
    while clock < seconds:
        started_at = time.perf_counter()
        while next_arrival <= clock:
            model = "ddpm" if source.random() < unet_share else "dcgan"
            priority: Priority = "bulk" if model == "ddpm" and source.random() < 0.1 else "interactive"
            scheduler.add(model, Job(model, next_arrival, MODELS[model]), 1, priority)
            next_arrival += source.expovariate(rate)
        batch = scheduler.schedule()
        result.scheduler_seconds += time.perf_counter() - started_at
        if batch is None:
            clock = next_arrival
            continue
        model, rows = batch
        cost = step_seconds(costs, model, len(rows))
        clock += cost
        result.rows, result.steps = result.rows + len(rows), result.steps + 1
        started_at = time.perf_counter()
        scheduler.charge(cost)
        for job, _ in rows:
            job.remaining_steps -= 1
            if not job.remaining_steps:
                scheduler.finish(job, 0)
                result.latencies[model].append(clock - job.arrived_at)
        result.scheduler_seconds += time.perf_counter() - started_at
    return result


def step_seconds(costs: StepCosts, model: str, rows: int) -> float:
    """Return the assumed seconds of a step."""
    fixed, row = costs[model]
    return (fixed + row * rows) / 1000


def full_batch_rate(costs: StepCosts, model: str) -> float:
    """Return the requests per second of one GPU whose batches are full."""
    return BATCH_SIZE / step_seconds(costs, model, BATCH_SIZE) / MODELS[model]


def scheduler_microseconds(costs: StepCosts, model: str) -> float:
    """Return the real microseconds of the scheduler for a request to `model` when such requests keep the GPU busy."""
    rate = full_batch_rate(costs, model)
    result = simulate(rate, costs, unet_share=float(model == "ddpm"), seconds=SCHEDULED_REQUESTS / rate)
    return 1e6 * result.scheduler_seconds / len(result.latencies[model])


@dataclass(frozen=True)
class Fleet:
    """Requests per second that each part of a fleet could do, and what that takes."""

    gpus: float
    workers: float
    cores: float
    """Cores beside each GPU that workers need to keep it busy."""
    supervisors: float
    """If each request has a connection of its own. Kept connections cost a supervisor nothing."""
    proxies: float
    network: float
    """Bits per second of what GPUs and workers do together."""

    def bottleneck(self, *others: str) -> str:
        """Return the part with the lowest rate of GPUs, workers and `others`."""
        return min(("gpus", "workers", *others), key=lambda part: float(getattr(self, part)))


def project(
    model: str, gpus: int, costs: StepCosts, overhead: Overhead, gpus_per_machine: int, proxy_rate: float
) -> Fleet:
    """Return what a fleet would do with full batches of one model."""
    machines = math.ceil(gpus / gpus_per_machine)
    gpu_rate, worker_rate = full_batch_rate(costs, model), 1e6 / overhead.worker[model]
    return Fleet(
        gpus=gpus * gpu_rate,
        workers=gpus * worker_rate,
        cores=gpu_rate / worker_rate,
        supervisors=machines * 1e6 / overhead.supervisor,
        proxies=machines * proxy_rate,
        network=8 * overhead.traffic * gpus * min(gpu_rate, worker_rate),
    )


def print_simulations(costs: StepCosts, rates: list[float]) -> None:
    """Print the table of simulated steps."""
    print(f"{SIMULATED_SECONDS:g} simulated seconds per line; batches of {BATCH_SIZE}; latencies in ms")
    names = ("offered/s", "done/s", "rows/step", "dcgan p50", "p99", "ddpm p50", "p99", "us/request")
    print("".join(f"{name:>{width}}" for name, width in zip(names, (10, 9, 11, 11, 8, 10, 8, 12), strict=True)))
    for rate in rates:
        result = simulate(rate, costs)
        cells = ""
        for latencies, width in zip(result.latencies.values(), (11, 10), strict=True):
            percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
            cells += f"{1000 * percentiles[49]:{width}.2f}{1000 * percentiles[98]:8.2f}"
        done, rows = result.finished / SIMULATED_SECONDS, result.rows / max(1, result.steps)
        spent = 1e6 * result.scheduler_seconds / max(1, result.finished)
        print(f"{rate:10.0f}{done:9.0f}{rows:11.1f}{cells}{spent:12.1f}")


def print_overhead(costs: StepCosts, overhead: Overhead) -> None:
    """Print the table of measured parts."""
    print("\nCPU microseconds of one request, measured")
    print(f"{'':8}{'worker':>10}{'of it: PNG':>12}{'scheduler':>11}{'the rest':>10}")
    encoding = encode()
    for name, (model, total) in zip(("W1", "W2"), overhead.worker.items(), strict=True):
        scheduling = scheduler_microseconds(costs, model)
        print(f"{name:8}{total:10.0f}{encoding:12.0f}{scheduling:11.0f}{total - encoding - scheduling:10.0f}")
    print(f"supervisor: {overhead.supervisor:.0f} per connection; {overhead.traffic} bytes per request and response")


def print_fleets(
    costs: StepCosts, overhead: Overhead, counts: list[int], gpus_per_machine: int, proxy_rate: float
) -> None:
    """Print the table of fleets."""
    print(
        f"\nrequests/s that each part could do; {gpus_per_machine} GPUs per machine; a Ray Serve proxy {proxy_rate:g}"
    )
    names = ("GPUs", "the GPUs", "workers", "cores/GPU", "supervisors", "proxies", "Gbit/s", "limit", "limit on Ray")
    widths = (8, 13, 11, 11, 13, 10, 9, 13, 14)
    print(" " * 4 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
    for name, model in zip(("W1", "W2"), costs, strict=True):
        for count in counts:
            fleet = project(model, count, costs, overhead, gpus_per_machine, proxy_rate)
            cells = f"{fleet.gpus:13,.0f}{fleet.workers:11,.0f}{fleet.cores:11.1f}{fleet.supervisors:13,.0f}"
            cells += f"{fleet.proxies:10,.0f}{fleet.network / 1e9:9.3f}"
            print(f"{name:4}{count:8}{cells}{fleet.bottleneck('supervisors'):>13}{fleet.bottleneck('proxies'):>14}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks capacity_model")
    parser.add_argument("--rates", type=float, nargs="+", default=[500, 2000, 5000, 10000])
    parser.add_argument("--fixed", type=float, nargs=2, default=(0.25, 1.5), metavar="MS")
    parser.add_argument("--row", type=float, nargs=2, default=(0.002, 0.012), metavar="MS")
    parser.add_argument("--fleet", type=int, nargs="+", default=[1, 10, 1000], metavar="GPUS")
    parser.add_argument("--machine", type=int, default=8, metavar="GPUS", help="GPUs per machine")
    parser.add_argument("--proxy", type=float, default=PROXY_RATE, help="requests/s of one Ray Serve proxy")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of the measurement of each workload")
    args = parser.parse_args()
    costs = dict(zip(MODELS, zip(args.fixed, args.row, strict=True), strict=True))
    print_simulations(costs, args.rates)
    overhead = measure(costs, BATCH_SIZE, args.seconds)
    print_overhead(costs, overhead)
    print_fleets(costs, overhead, args.fleet, args.machine, args.proxy)


if __name__ == "__main__":
    main()
