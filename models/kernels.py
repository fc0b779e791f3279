"""Kernels that replace several operations of torch on a CUDA GPU, where `models/fused.py` has proven them there.

None until then, and on all other devices: the operations of torch define the results.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]

log = logging.getLogger(__name__)

installed: dict[Kernel, Kernel] = {}
"""The kernels of `models/fused.py` that are used, by the functions that they replace."""


def choose(otherwise: Kernel, x: Tensor) -> Kernel:
    """The kernel that replaces the function `otherwise` for arguments like x, or `otherwise` itself.

    Kernels have no gradients.
    """
    usable = x.is_cuda and not torch.is_grad_enabled()
    return installed.get(otherwise, otherwise) if usable else otherwise


@contextmanager
def unused() -> Iterator[None]:
    """Within the block the operations of torch are used."""
    kept = dict(installed)
    installed.clear()
    try:
        yield
    finally:
        installed.update(kept)


@cache
def install(device: torch.device) -> None:
    """Use those kernels from now on that work on `device`, a CUDA GPU. Without Triton none."""
    try:
        from models import fused
    except ImportError as error:
        log.warning("no fused kernels are used: %s", error)
    else:
        fused.install(device)
