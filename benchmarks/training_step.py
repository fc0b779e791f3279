"""The speed of training: on a CPU a step of the diffusion model's U-Net by operator, on a GPU iterations of families.

    python -m benchmarks training_step
    python -m benchmarks training_step --device cuda

On a CPU with one thread, as training runs beside other work. A GEMM and the net's own 3x3 convolutions in the same run
are the references. A multiply and an add count as two operations.

On a GPU images per second of whole iterations, called and recorded, with images of MNIST's number and size.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models import families
from training import data
from training.loop import DTYPES, Hardware, Trainer
from training.numerics import reproducible
from training.recording import recorder

BATCH, REPEATS = 128, 9
TARGETS = {"ddpm": 36_000, "cgan": 23_000, "gan": 250_000, "vae": 110_000}
"""Images per second that recorded iterations should reach on an H100, with the batches of the recipes."""
LARGER = 4
"""How many times as large as the recipe's the other batch is."""
WARM_UP, SECONDS = 10, 3.0
"""Iterations before a measurement, which also make the recording, and the seconds that it takes at least."""


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median seconds of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return statistics.median(times)


def convolution(width: int, side: int) -> tuple[Callable[[], object], int]:
    """Return the forward and backward pass of one 3x3 convolution of the net, and its number of operations."""
    layer = nn.Conv2d(width, width, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, width, side, side).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    inputs = [x, *layer.parameters()]
    gradient = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), inputs, gradient), 3 * 2 * BATCH * side * side * width * width * 9


def main() -> None:
    """Print the table of the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training_step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="f32", help="of iterations on a GPU")
    args = parser.parse_args()
    if args.device == "cpu":
        print_step()
        return
    if not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; omit it")
    device = torch.device("cuda", 0)
    with reproducible(device):
        print_iterations(device, args.precision)


def print_iterations(device: torch.device, precision: str) -> None:
    """Print images per second of iterations on a GPU, called and recorded."""
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {precision}; images/s")
    print(f"{'family':8}{'batch':>7}{'called':>11}{'recorded':>11}{'target, H100':>15}")
    for name, target in TARGETS.items():
        batch = families.get(name).recipe.batch
        for size, goal in ((batch, f"{target:,}"), (LARGER * batch, "")):
            called, recorded = (
                images_per_second(name, size, Hardware(device, record), precision)
                for record in (None, recorder(device))
            )
            print(f"{name:8}{size:7}{called:11,.0f}{recorded:11,.0f}{goal:>15}", flush=True)


def images_per_second(
    name: str, batch: int, hardware: Hardware, precision: str = "f32", seconds: float = SECONDS
) -> float:
    """Return images per second of training of the family `name`, on images of noise."""
    torch.manual_seed(0)
    kind = families.get(name)
    images = torch.randint(256, (60_000, 1, 28, 28), dtype=torch.uint8)
    noise = data.make("noise", images, torch.arange(len(images)) % 10, tuple("0123456789"))
    recipe = dataclasses.replace(kind.recipe, batch=batch)
    trainer = Trainer(kind(kind.Config()), recipe, noise, hardware, seed=0, precision=precision)
    for _ in range(WARM_UP):
        trainer.train_step()
    before, started_at = trainer.images, synchronized(hardware.device)
    while (ended_at := synchronized(hardware.device)) - started_at < seconds:
        for _ in range(WARM_UP):
            trainer.train_step()
    return (trainer.images - before) / (ended_at - started_at)


def synchronized(device: torch.device) -> float:
    """Return the time, in seconds, at which the device has done all work so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_step() -> None:
    """Print a step of the diffusion model on the CPU, and its operators."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind = families.get("ddpm")
    family = kind(kind.Config()).to(memory_format=torch.channels_last)
    parameters = list(family.parameters())
    x = torch.rand(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last) * 2 - 1
    label = torch.arange(BATCH) % 10

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(family.loss("self", x, label)["loss"], parameters)

    with FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    width = family.config.width
    rows: list[tuple[str, Callable[[], object], float]] = [("GEMM 1024x1024x1024", lambda: a @ b, 2.0 * 1024**3)]
    for channels, side in ((width, 14), (2 * width, 7)):
        work, count = convolution(channels, side)
        rows.append((f"conv 3x3, {channels} channels, {side}x{side}, forward and backward", work, count))
    rows.append((f"training step, batch {BATCH}", step, counter.get_total_flops()))
    print(f"{'one thread':56}{'ms':>9}{'GFLOP/s':>9}{'of GEMM':>9}")
    gemm_rate = 0.0
    for name, work, operations in rows:
        seconds = median_seconds(work)
        rate = operations / seconds / 1e9
        gemm_rate = gemm_rate or rate
        print(f"{name:56}{1000 * seconds:9.1f}{rate:9.1f}{rate / gemm_rate:9.2f}")
    print(f"images/s: {BATCH / seconds:.0f}")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    print_operators(profiler)


def print_operators(profiler: profile) -> None:
    """Print the eight operators that take the most time."""
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("share of the step by operator:")
    for event in events[:8]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.key}")


if __name__ == "__main__":
    main()
