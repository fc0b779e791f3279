"""Kernels that replace several operations of torch on a CUDA GPU, where `models/fused.py` has proven them there.

None until then, and on all other devices: the operations of torch define the results.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

normal: Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor] | None = None
"""`noise.normal`, with the same bits."""
group_norm: Callable[..., Tensor] | None = None
"""`nets.group_norm` for images without gradients, rounded otherwise; a row's bits do not depend on other rows."""


@contextmanager
def unused() -> Iterator[None]:
    """Within the block the operations of torch are used."""
    global normal, group_norm
    kept, (normal, group_norm) = (normal, group_norm), (None, None)
    try:
        yield
    finally:
        normal, group_norm = kept


@cache
def install(device: torch.device) -> None:
    """Use those kernels from now on that work on `device`, a CUDA GPU. Without Triton none."""
    try:
        from models import fused
    except ImportError as error:
        log.warning("no fused kernels are used: %s", error)
    else:
        fused.install(device)
