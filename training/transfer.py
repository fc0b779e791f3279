"""Copies between the host and a GPU that neither of them waits for."""

from typing import Any

import torch
from torch import Tensor

RESIDENT_SHARE = 0.25
"""Largest share of a GPU's free memory that training images may take."""


def resident(images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Training images and labels on `device` if it is a CUDA GPU with room for them, otherwise as they are."""
    if device.type != "cuda" or images.nbytes + labels.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images, labels
    return images.to(device), labels.to(device)


def upload(source: Tensor, target: Tensor) -> None:
    """Copy `source`, in host memory, to `target`."""
    # A copy from memory that is not pinned waits for the GPU.
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


class HostCopy:
    """A copy in host memory of a tensor, or of the tensors in a tree of dictionaries. `result` waits for it."""

    def __init__(self, tree: Any) -> None:
        self._event: torch.cuda.Event | None = None
        self._tree = self._copied(tree)
        if self._event is not None:
            self._event.record()

    def is_ready(self) -> bool:
        """Whether the copy is complete."""
        return self._event is None or self._event.query()

    def result(self) -> Any:
        """The tree of copies."""
        if self._event is not None:
            self._event.synchronize()
        return self._tree

    def _copied(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self._copied(value) for key, value in tree.items()}
        if not isinstance(tree, Tensor):
            return tree
        if tree.is_cuda and self._event is None:
            self._event = torch.cuda.Event(blocking=True)
        return tree.to("cpu", non_blocking=tree.is_cuda, copy=True)  # to pinned memory if it does not block
