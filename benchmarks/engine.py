"""The time of a request by its parts, and the time of a row by the size of its batch.

    python -m benchmarks engine

One process and one thread. Each part is measured alone in a loop, with warm caches. The rest is HTTP, and the extra
time that the parts take when they alternate.
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.serve import BARE, SEEDS, json_request
from harness import workload
from harness.load import merge, run_load
from harness.server import run_service
from service.codecs.png import png
from service.engine.engine import Engine
from service.engine.request import Request, Sample, StartState
from service.engine.runner import Runner

MODELS = {"dcgan": 1, "ddpm": 20}
"""Steps by model."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 40
QUEUED = 16
"""Requests in the queue while the engine's own time is measured."""


def median_microseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median microseconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_at)
    return 1e6 * statistics.median(times)


def request(model: str, count: int) -> Request:
    """Return an engine request for `count` images."""
    family = workload.prepared_model(model)
    sampler = family.samplers[0] if family.samplers else None
    return Request(model, tuple(Sample(StartState(seed, 0)) for seed in range(count)), MODELS[model], sampler)


def runner(model: str, max_batch_size: int) -> Runner:
    """Return a runner on the CPU."""
    return Runner(workload.prepared_model(model), torch.device("cpu"), max_batch_size)


def step(model: str, size: int) -> float:
    """Return the microseconds of one step of `size` rows, the first step of a chain."""
    device = runner(model, 64)
    return median_microseconds(lambda: device.advance(device.rows(request(model, size))))


def chain(model: str) -> float:
    """Return the microseconds of all steps of a request for one image."""
    device = runner(model, 1)

    def run() -> None:
        rows = device.rows(request(model, 1))
        for _ in range(MODELS[model]):
            device.advance(rows)

    return median_microseconds(run)


def queue(model: str) -> float:
    """Return the microseconds of a request in the engine without the device."""
    device = runner(model, QUEUED)
    image = device.advance(device.rows(request("dcgan", 1)))[0] if model == "dcgan" else torch.zeros(28, 28).numpy()
    engine = Engine({model: device}, queue_images=1000, clock=time.perf_counter)
    device.advance = lambda rows: [image for _ in rows]  # type: ignore[method-assign]

    def run() -> None:
        for seed in range(QUEUED):
            engine.submit(Request(model, (Sample(StartState(seed, 0)),), 1))
        while engine.step():
            pass

    return median_microseconds(run) / QUEUED


def encode() -> float:
    """Return the microseconds of a PNG."""
    device = runner("dcgan", 1)
    image = device.advance(device.rows(request("dcgan", 1)))[0]
    assert image is not None
    return median_microseconds(lambda: png(image), 1000)


def response(url: str, model: str) -> float:
    """Return the median microseconds that one client waits for a response."""
    requests = [lambda: json_request(model, next(SEEDS), MODELS[model])]
    return 1e6 * statistics.median(merge(run_load(url, requests, 2.0)).latencies)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print("microseconds per row, by rows in a step")
    print(f"{'':8}" + "".join(f"{size:>8}" for size in SIZES))
    for model in MODELS:
        print(f"{model:8}" + "".join(f"{step(model, size) / size:8.0f}" for size in SIZES))
    with BARE.serve() as url:
        bare = response(url, "dcgan")
    with run_service(device="cpu", workers=1) as (url, _):
        total = {model: response(url, model) for model in MODELS}
    encoding = encode()
    print("\nmicroseconds of one request alone, and of one to a bare route")
    print(f"{'':8}{'bare':>10}{'service':>10}{'of it: device':>15}{'queue':>8}{'encode':>8}{'the rest':>10}")
    for model in MODELS:
        device, queued = chain(model), queue(model)
        rest = total[model] - device - queued - encoding
        print(f"{model:8}{bare:10.0f}{total[model]:10.0f}{device:15.0f}{queued:8.0f}{encoding:8.0f}{rest:10.0f}")


if __name__ == "__main__":
    main()
