"""The number formats and kernels with which a GPU trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SETTINGS: tuple[tuple[Any, str, Any], ...] = (
    # Convolutions round their inputs to TF32, torch's default. The weights that came from a GPU were trained so.
    (torch.backends.cudnn.conv, "fp32_precision", "tf32"),  # type: ignore[attr-defined]
    # Matrix products in full: on an H100 TF32 made iterations of ddpm, cgan and vae at most 4 % faster.
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    # The same sums in the same order each time, so that a resumed run is the straight run to the bit.
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "benchmark", False),
)
"""Objects, their attributes and the values in training."""


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Within the block a CUDA GPU computes by SETTINGS, and attention by matrix products; no effect on other devices.

    The backward passes of fused attention add up in an order that may vary.
    """
    if device.type != "cuda":
        yield
        return
    former = [getattr(owner, name) for owner, name, _ in SETTINGS]
    try:
        for owner, name, value in SETTINGS:
            setattr(owner, name, value)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for (owner, name, _), value in zip(SETTINGS, former, strict=True):
            setattr(owner, name, value)
