"""A training step of the diffusion model's U-Net by operator, compared with what the machine can do.

    python -m benchmarks training_step

One thread, as training runs beside other work. A GEMM and the net's own 3x3 convolutions in the same run are the
references. A multiply and an add count as two operations.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models import families

BATCH, REPEATS = 128, 9


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
    """Print the table."""
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
