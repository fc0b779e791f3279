"""Copies between the host and a GPU that hold up neither of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Wait = Callable[[], list[NDArray[Any]]]
"""Waits for copies and returns them."""


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of `array` on `device`. A GPU reads it from pinned memory, so that the host need not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class CopyStream:
    """Copies results from a GPU on a stream of its own, beside the work that was launched after them."""

    def __init__(self, device: torch.device) -> None:
        # Streams come from pools by turns. Those of high priority never are the stream of a recording, which a copy for
        # another model would become part of.
        self.device, self.stream = device, torch.cuda.Stream(device, priority=-1)

    def __call__(self, tensors: Sequence[Tensor]) -> Wait:
        """Start to copy `tensors`, which nothing may write to afterwards, once all work before has computed them.

        The returned function also waits for that work if there are no tensors.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # into pinned memory
            copied = torch.cuda.Event()
            copied.record()
        for tensor in tensors:
            tensor.record_stream(self.stream)  # its memory is not used again before it is copied

        def wait() -> list[NDArray[Any]]:
            copied.synchronize()
            return [copy.numpy() for copy in copies]

        return wait
