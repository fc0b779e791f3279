"""A GPU: the service and its parts beside what the device can do, and the promise of equal bytes.

    python -m benchmarks gpu [--write docs/gpu.md] [--seconds 3] [--requests 10000] [--only PART ...]

Made for under six minutes on one GPU, which is unmeasured; `--only` runs some of the parts:

- `step`: microseconds of a step of `dcgan` and `ddpm` through the runner, by rows; and the limit, the same step as one
  recording of exactly so many rows.
- `kernels`: what a step of `ddpm` spends its time on, by torch's profiler.
- `load`: requests per second. W1 is one image of `dcgan`, W2 one of `ddpm` in 20 steps without guidance; the number is
  that of clients. W3 is the median when 16 clients request 10 steps while 16 others request 50. Beside this service,
  naive FastAPI and, where it is installed (`pip install .[peers]`), LitServe, with the same weights on the same device.
- `promise`: requests of all models, each alone, then together, after a restart, and with another number of HTTP
  processes: how many differ.
- `dataset`: seconds for 60,000 labelled digits by `drawbridge dataset`.
- `tests`: the tests that need a GPU.

`--device cpu` runs the same on a CPU, to try it; its figures mean nothing for a GPU.
"""

import argparse
import asyncio
import importlib.util
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.batch_invariance import REQUESTS_PER_MODEL, send_together
from benchmarks.serve import PEERS, RequestBuilder, json_request
from harness.clients import LoadReport
from harness.expected import ExpectedRequest, expected_responses, random_urls
from harness.load import LoadResult, merge, run_load
from harness.server import ROOT, run_service
from harness.weights import WEIGHTS
from models import store
from models.base import Rows
from models.cores import available_cores
from models.devices import choose_device, device_name
from models.inference import prepare_for_cpu
from models.nets import fold_norms
from service.engine.graphs import cuda_recorder
from service.engine.request import Request, Sample, StartState
from service.engine.runner import Row, Runner
from service.engine.slot_runner import SlotRunner

STEPS = {"dcgan": 1, "ddpm": 20}
WORKLOADS = {
    "W1": ("dcgan", 1, (1, 8, 64, 256)),
    "W2": ("ddpm", 20, (1, 8, 32, 128, 512)),
}
"""Model, steps and numbers of clients."""
DATASETS = (("cgan", ()), ("ddpm", ("--steps", "20")))
LOAD_PROCESSES = max(1, min(4, available_cores() // 4))
"""Processes of the load generator, which shares the machine with the service."""
MOST_ROWS = {"cuda": 512, "cpu": 32}
REPEATS = 30
PEERS_ON_A_GPU = ("naive", "litserve")
"""The servers whose model runs on `WORKLOAD_DEVICE`."""
PARTS = ("step", "kernels", "load", "promise", "dataset", "tests")
MARKERS = ("<!-- measured -->", "<!-- /measured -->")
"""Around the tables in docs/gpu.md."""


def describe(device: torch.device) -> str:
    """What the figures were measured on."""
    name = device_name(device) or "A CPU"
    return f"{name}, {available_cores()} cores, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."


def step(device: torch.device) -> Iterator[str]:
    """Microseconds of a step, through the runner and as one recording."""
    counts = [count for count in (1, 8, 32, 128, 512) if count <= MOST_ROWS[device.type]]
    yield "| microseconds of a step, by rows | " + " | ".join(map(str, counts)) + " |"
    yield "|---|" + "---|" * len(counts)
    for model in STEPS:
        runner = _runner(model, device)
        yield _line(f"`{model}`, runner", [1e6 * _step_seconds(runner, model, count) for count in counts])
        yield _line(f"`{model}`, limit", [1e6 * _limit_seconds(runner, model, count) for count in counts])


def kernels(device: torch.device) -> Iterator[str]:
    """What a step of ddpm spends its time on."""
    runner = _runner("ddpm", device)
    rows = _rows(runner, "ddpm", runner.max_batch_size)
    runner.advance(rows)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        runner.advance(rows)
        _synchronize(device)
    seconds = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, seconds))
    total = sum(getattr(event, seconds) for event in events) or 1
    yield f"| a step of `ddpm`, {len(rows)} rows: {sum(event.count for event in events):,} kernels | share | calls |"
    yield "|---|---|---|"
    for event in events[:10]:
        yield f"| `{event.key[:80]}` | {getattr(event, seconds) / total:.0%} | {event.count} |"


def load(device: torch.device, seconds: float) -> Iterator[str]:
    """Requests per second of this service and of other servers, and this service's latencies."""
    columns = [f"{name}, {clients}" for name, (*_, numbers) in WORKLOADS.items() for clients in numbers]
    yield "| requests/s | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    with _load_generator() as pool:
        started_at = time.monotonic()
        with _service(device) as url:
            ready = time.monotonic() - started_at
            yield _line("Drawbridge", _rates(pool, url, json_request, seconds))
            alone = [
                _milliseconds(run_load_in_processes(pool, url, json_request, [(model, steps)], seconds))
                for model, steps, _ in WORKLOADS.values()
            ]
            short, long = _w3(url, seconds)
        for peer in PEERS:
            if peer.name in PEERS_ON_A_GPU and (not peer.needs or importlib.util.find_spec(peer.needs)):
                with patch.dict(os.environ, WORKLOAD_DEVICE=device.type), peer.serve() as url:
                    yield _line(peer.name, _rates(pool, url, peer.request, seconds))
    yield ""
    yield "- Median of one client: " + ", ".join(
        f"{name} {value:.2f} ms" for name, value in zip(WORKLOADS, alone, strict=True)
    )
    yield f"- W3: 10 steps {short:.1f} ms, 50 steps {long:.1f} ms, {short / long:.2f}"
    yield f"- All models were ready after {ready:.1f} s"


def promise(device: torch.device, count: int) -> Iterator[str]:
    """How many responses differ from the bytes of each request alone."""
    source = random.Random(0)
    expected = expected_responses(
        lambda models: map(ExpectedRequest, random_urls(models, source, REQUESTS_PER_MODEL)), device=device.type
    )
    yield f"| {len(expected)} different requests alone, compared with | requests | differ |"
    yield "|---|---|---|"
    for name, settings in (
        ("together", {}),
        ("after a restart", {}),
        ("with one HTTP process", {"http_processes": 1}),
        ("with four HTTP processes", {"http_processes": 4}),
    ):
        report = LoadReport(expected)
        with _service(device, **settings) as url:
            asyncio.run(send_together(url, report, max(1, count // 4), source))
        yield f"| {name} | {report.total:,} | {report.lost}{report.errors()} |"


def dataset(device: torch.device, count: int) -> Iterator[str]:
    """Seconds of labelled digits by the command."""
    with _service(device) as url, tempfile.TemporaryDirectory() as folder:
        for model, options in DATASETS:
            output = Path(folder) / f"{model}.npz"
            command = [Path(sys.executable).parent / "drawbridge", "dataset", model, "--url", url]
            started_at = time.monotonic()
            subprocess.run(
                [*command, "--per-label", str(count // 10), *options, "-o", output], check=True, capture_output=True
            )
            yield f"- {count:,} labelled digits of `{model}`: {time.monotonic() - started_at:.1f} s"


def tests() -> Iterator[str]:
    """The last line of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-o", "filterwarnings=default", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    yield f"Tests that need a GPU: {(done.stdout.strip().splitlines() or ['none'])[-1]}."


def _runner(model: str, device: torch.device) -> Runner:
    """The runner that a service on `device` would have, warmed up."""
    family, _ = store.load(WEIGHTS / model)
    fold_norms(family)
    if device.type == "cpu":
        prepare_for_cpu(family)
    kind = SlotRunner if device.type == "cuda" else Runner
    runner = kind(family.to(device), device, MOST_ROWS[device.type])
    runner.warm_up()
    return runner


def _rows(runner: Runner, model: str, count: int) -> list[Row]:
    """Rows of `count` images without guidance, before their first step."""
    samples = tuple(Sample(StartState(seed, 0)) for seed in range(count))
    samplers = runner.family.samplers
    return runner.rows(Request(model, samples, STEPS[model], samplers[0] if samplers else None))


def _step_seconds(runner: Runner, model: str, count: int) -> float:
    """Median seconds of a step of `count` rows, with sending and reading, after the first of a chain if it has more."""
    times = []
    while len(times) < REPEATS:
        rows = _rows(runner, model, count)
        if STEPS[model] > 1:
            runner.advance(rows)
        for _ in range(max(1, STEPS[model] - 1)):
            started_at = time.perf_counter()
            runner.advance(rows)
            times.append(time.perf_counter() - started_at)
    return statistics.median(times[len(times) // 5 :])


@torch.inference_mode()
def _limit_seconds(runner: Runner, model: str, count: int) -> float:
    """Median seconds of the model's own step, as one recording of `count` rows that stay where they are."""
    family, device = runner.family, runner.device
    index = torch.arange(count, device=device)
    label = torch.zeros(count, family.classes, device=device)
    line = family.schedule(STEPS[model])[:1].to(device).expand(count, -1).contiguous()
    state = family.initial_state(index, index, label, line)
    ones = torch.ones(count, device=device)
    rows = Rows(state, label, line, ones, index, index, index + 1, guided=False, noisy=False)
    if device.type == "cuda":
        replay, _ = cuda_recorder(device)(lambda: (family.step(rows),))
    else:
        replay = partial(family.step, rows)
    times = []
    for _ in range(REPEATS):
        started_at = time.perf_counter()
        replay()
        _synchronize(device)
        times.append(time.perf_counter() - started_at)
    return statistics.median(times[REPEATS // 5 :])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _service(device: torch.device, **settings: object) -> Iterator[str]:
    """A service with all models in memory. Yields its URL."""
    with run_service(device=device.type, **settings) as (url, _):
        yield url


@contextmanager
def _load_generator() -> Iterator[ProcessPoolExecutor]:
    """The processes that send requests. One cannot send the 20,000 requests per second that a GPU answers."""
    with ProcessPoolExecutor(LOAD_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        for started in [pool.submit(time.sleep, 0.1) for _ in range(LOAD_PROCESSES)]:
            started.result()
        yield pool


def _rates(pool: ProcessPoolExecutor, url: str, request: RequestBuilder, seconds: float) -> Iterator[float]:
    for model, steps, numbers in WORKLOADS.values():
        for clients in numbers:
            yield run_load_in_processes(pool, url, request, [(model, steps)] * clients, seconds).rate


def _w3(url: str, seconds: float) -> list[float]:
    """Median milliseconds of 10 steps and of 50 steps, requested at once."""
    requests = [("ddpm", 10)] * 16 + [("ddpm", 50)] * 16
    results = run_load(url, [_next_request(json_request, *one) for one in requests], 2 * seconds)
    return [_milliseconds(merge(part)) for part in (results[:16], results[16:])]


def _milliseconds(result: LoadResult) -> float:
    """The median of the latencies; not a number if no response came in time."""
    return 1000 * statistics.median(result.latencies) if result.latencies else math.nan


def run_load_in_processes(
    pool: ProcessPoolExecutor, url: str, request: RequestBuilder, clients: list[tuple[str, int]], seconds: float
) -> LoadResult:
    """The responses to clients that request images of a model in a number of steps, from the processes of `pool`.

    Raises SystemExit if a request fails.
    """
    count = min(LOAD_PROCESSES, len(clients))
    parts = [clients[k::count] for k in range(count)]
    result = merge(list(pool.map(_run_part, *zip(*((url, request, part, seconds) for part in parts), strict=True))))
    if result.failed:
        raise SystemExit(f"{url}: {result.failed} requests failed")
    return result


def _run_part(url: str, request: RequestBuilder, clients: list[tuple[str, int]], seconds: float) -> LoadResult:
    return merge(run_load(url, [_next_request(request, *one) for one in clients], seconds))


def _next_request(request: RequestBuilder, model: str, steps: int) -> Callable[[], bytes]:
    """A function that builds a request with a new random seed each time."""
    source = random.Random()
    return lambda: request(model, source.getrandbits(40), steps)


def _line(name: str, values: Iterable[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:,.0f}" for value in values) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of requests")
    parser.add_argument("--requests", type=int, default=10_000, help="responses that are compared")
    parser.add_argument("--images", type=int, default=60_000, help="images of a data set")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the tables of this Markdown file")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "step": lambda: step(device),
        "kernels": lambda: kernels(device),
        "load": lambda: load(device, args.seconds),
        "promise": lambda: promise(device, args.requests),
        "dataset": lambda: dataset(device, args.images),
        "tests": tests,
    }
    lines = [describe(device)]
    for name in args.only:
        started_at = time.monotonic()
        lines += ["", *parts[name]()]
        print(f"{name}: {time.monotonic() - started_at:.0f} s", file=sys.stderr)
    print("\n".join(lines))
    if args.write is not None:
        write(args.write, "\n".join(lines))


def write(page: Path, tables: str) -> None:
    """Replace what is between the two markers of `page`."""
    before, rest = page.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    page.write_text(f"{before}{MARKERS[0]}\n{tables}\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
