"""Where the time of a request goes, and what a row costs in batches of any size.

    python -m benchmarks engine

One process and one thread. Each part is measured by itself, in a loop where caches are warm: the rest is HTTP, and what
the parts take longer where they take turns.
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.serve import BARE, SEEDS, ours
from harness import workload
from harness.load import build_request, merge, run_load
from harness.server import run_service
from service.codecs.png import png
from service.engine.engine import Engine
from service.engine.request import Request, Sample, StartState
from service.engine.runner import Runner

MODELS = {"dcgan": 1, "ddpm": 20}
SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 40


def median(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Microseconds of a call."""
    call()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return 1e6 * statistics.median(times)


def request(model: str, count: int) -> Request:
    """`count` images."""
    family = workload.prepared_model(model)
    sampler = family.samplers[0] if family.samplers else None
    return Request(model, tuple(Sample(StartState(seed, 0)) for seed in range(count)), MODELS[model], sampler)


def device(model: str, size: int) -> float:
    """Microseconds of one step of `size` rows, of the first one for a chain."""
    runner = Runner(workload.prepared_model(model), torch.device("cpu"), 64)
    return median(lambda: runner.advance(runner.rows(request(model, size))))


def queue(model: str) -> float:
    """Microseconds of a request's way through the engine, without its steps on the device."""
    runner = Runner(workload.prepared_model(model), torch.device("cpu"), 16)
    image = runner.advance(runner.rows(request("dcgan", 1)))[0] if model == "dcgan" else torch.zeros(28, 28).numpy()
    engine = Engine({model: runner}, queue_images=1000, clock=time.perf_counter)
    runner.advance = lambda rows: [image for _ in rows]  # type: ignore[method-assign]

    def once() -> None:
        for seed in range(16):
            engine.submit(Request(model, (Sample(StartState(seed, 0)),), 1))
        while engine.step():
            pass

    return median(once) / 16


def encode() -> float:
    """Microseconds of a PNG."""
    runner = Runner(workload.prepared_model("dcgan"), torch.device("cpu"), 1)
    image = runner.advance(runner.rows(request("dcgan", 1)))[0]
    assert image is not None
    return median(lambda: png(image), 1000)


def answered(url: str, request: Callable[[], bytes]) -> float:
    """Microseconds that one caller waits for an answer."""
    return 1e6 * statistics.median(merge(run_load(url, [request], 2.0)).latencies)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print("microseconds a row, by rows in a step")
    print(f"{'':8}" + "".join(f"{size:>8}" for size in SIZES))
    for model in MODELS:
        print(f"{model:8}" + "".join(f"{device(model, size) / size:8.0f}" for size in SIZES))
    with BARE.serve() as url:
        content = build_request("/generate", "model=dcgan&seed=1")
        bare = answered(url, lambda: content)
    with run_service(device="cpu", workers=1) as (url, _):
        whole = {model: answered(url, lambda m=model: ours(m, next(SEEDS), MODELS[m])) for model in MODELS}
    encoding = encode()
    print("\nmicroseconds of one request alone, and of one that a bare route answers")
    print(f"{'':8}{'bare':>10}{'service':>10}{'of it: device':>15}{'queue':>8}{'encode':>8}{'the rest':>10}")
    for model, steps in MODELS.items():
        runner = Runner(workload.prepared_model(model), torch.device("cpu"), 1)

        def chain(runner: Runner = runner, model: str = model, steps: int = steps) -> None:
            rows = runner.rows(request(model, 1))
            for _ in range(steps):
                runner.advance(rows)

        drawing, waiting = median(chain), queue(model)
        rest = whole[model] - drawing - waiting - encoding
        print(f"{model:8}{bare:10.0f}{whole[model]:10.0f}{drawing:15.0f}{waiting:8.0f}{encoding:8.0f}{rest:10.0f}")


if __name__ == "__main__":
    main()
