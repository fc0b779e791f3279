"""The cost of a training run, before it starts, and of sampling."""

import copy
import platform
import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from models import parallel
from models.base import Family
from models.batch_invariant import LARGE_BATCH
from models.store import Manifest
from training.data import Dataset
from training.sources import BATCH, sample_exported

COUNTED = 4
"""Images of the counted iteration: some losses compare images with each other."""


def training_macs(family: Family, data: Dataset) -> float:
    """Multiplications of one training iteration of `family` per image, gradients included; 0 in closed form.

    They are counted on a copy, with a batch of any images, so the run's randomness and weights stay as they are.
    """
    if not family.update_order():
        return 0.0
    family = copy.deepcopy(family).cpu().to(memory_format=torch.contiguous_format)
    x = torch.zeros(COUNTED, *data.images.shape[1:])
    label = torch.zeros(COUNTED, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]), parallel.alone(), MacCounter() as counter:
        for player in family.update_order():
            parameters = list(family.player(player).parameters())
            torch.autograd.grad(family.loss(player, x, label)["loss"], parameters, allow_unused=True)
    return counter.macs / COUNTED


class MacCounter(TorchDispatchMode):
    """Counts multiplications. torch's own counter does not count gradients of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.macs += formula(*args, **(kwargs or {}), out_val=result) / 2
        return result


def describe(family: Family, data: Dataset) -> str:
    """One line about the size of the nets and the cost of training."""
    parameters = sum(parameter.numel() for parameter in family.parameters())
    macs = training_macs(family, data)
    if not macs:
        return f"{family.name}: {parameters:,} parameters; estimated from all images at once"
    return f"{family.name}: {parameters:,} parameters; {macs / 1e6:,.0f} million multiplications per training image"


def sampling_cost(family: Family, manifest: Manifest, **options: Any) -> dict[str, Any]:
    """Cost of sampling: multiplications per image, and images per second of CPU time."""
    # A smaller batch may be padded. The fused attention kernel is not counted, so it is switched off.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sample_exported(family, manifest, seed=0, count=LARGE_BATCH, **options)
    times = []
    for seed in range(3):
        started_at = time.process_time()
        sample_exported(family, manifest, seed, BATCH, **options)
        times.append(time.process_time() - started_at)
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    speed = BATCH / statistics.median(times)
    macs = counter.get_total_flops() // 2 // LARGE_BATCH
    return {"macs": macs, "images_per_core_second": speed, "cpu": processor}
