"""What a run costs, before it starts."""

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models import parallel
from models.base import Family
from training.data import Dataset

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
