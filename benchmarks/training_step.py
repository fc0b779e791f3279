"""Where a training step of the diffusion model's U-Net goes, and how near it is to what the machine can do.

    python -m benchmarks training_step

Everything on one thread, as training runs it beside other work; a GEMM and the net's own 3x3 convolutions in the same
run are what the step is held against. A multiply and an add are two operations.
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


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of `work`, after one call that does not count."""
    work()
    found = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return statistics.median(found)


def convolution(width: int, side: int) -> tuple[Callable[[], object], int]:
    """Forward and backward of one 3x3 convolution of the net, and its operations."""
    layer = nn.Conv2d(width, width, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, width, side, side).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    inputs = [x, *layer.parameters()]
    grown = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), inputs, grown), 3 * 2 * BATCH * side * side * width * width * 9


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
    rows: list[tuple[str, Callable[[], object], float]] = [("GEMM 1024x1024x1024", lambda: a @ b, 2 * 1024**3)]
    for channels, side in ((width, 14), (2 * width, 7)):
        work, operations = convolution(channels, side)
        rows.append((f"conv 3x3, {channels} channels, {side}x{side}, both ways", work, operations))
    rows.append((f"training step, batch {BATCH}", step, counter.get_total_flops()))
    print(f"{'one thread':44}{'ms':>9}{'GFLOP/s':>9}{'of GEMM':>9}")
    best = 0.0
    for name, work, operations in rows:
        took = seconds(work)
        rate = operations / took / 1e9
        best = best or rate
        print(f"{name:44}{1000 * took:9.1f}{rate:9.1f}{rate / best:9.2f}")
    print(f"images/s: {BATCH / took:.0f}")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("share of the step by operator:")
    for event in events[:8]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.key}")


if __name__ == "__main__":
    main()
