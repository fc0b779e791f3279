"""An iteration of training as a recording, which a GPU replays with one launch.

An iteration of these small nets is hundreds of kernels of a few microseconds each, which take longer to launch one by
one than to run. A recording repeats them at the same addresses: what changes from one iteration to the next lies in
`Inputs`, all else is state that the kernels themselves update.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.cuda_graph import record_graph
from training import checkpoint
from training.transfer import upload

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a function, which it may call before. Returns a function that replays it and returns the same tensor each
time. Raises RuntimeError if the function cannot be recorded."""
WARM_UP = 3
"""Calls before a recording."""


class Inputs:
    """What an iteration gets from the host, on the device at fixed addresses."""

    def __init__(self, batches: int, batch: int, steps: int, device: torch.device) -> None:
        self.index = torch.zeros(batches, batch, dtype=torch.int64, device=device)
        """The images of each batch."""
        self._numbers = torch.zeros(steps + 1, device=device)
        *self.rates, self.weight = self._numbers.unbind()
        """The learning rate of each optimizer step, and the weight of the new values in the average, [] each."""

    def fill(self, index: Sequence[Tensor], rates: Sequence[float], weight: float) -> None:
        """Give all inputs the values of the next iteration."""
        upload(torch.stack([*index]), self.index)
        upload(torch.tensor([*rates, weight]), self._numbers)


@contextmanager
def unchanged(tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> Iterator[None]:
    """At the end of the block `tensors`, at their addresses, and the random numbers of `device` are as before it.

    Those that the block made are zeros, with which the state of Adam begins.
    """
    random = checkpoint.random_state(device)
    saved = {tensor: tensor.detach().clone() for tensor in tensors()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in tensors():
                if tensor in saved:
                    tensor.copy_(saved[tensor])
                else:
                    tensor.zero_()
        checkpoint.set_random_state(random, device)


def recorder(device: torch.device) -> Record | None:
    """What records an iteration on `device`: CUDA graphs on a CUDA GPU, nothing elsewhere."""
    if device.type != "cuda":
        return None

    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph, outputs = record_graph(function, device, warm_up=WARM_UP)

        def replay() -> Tensor:
            graph.replay()
            return outputs

        return replay

    return record
