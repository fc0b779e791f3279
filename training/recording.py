"""An iteration of training as a recording, which a GPU replays with one launch.

An iteration of these small nets is hundreds of kernels of a few microseconds each, which take longer to launch one by
one than to run. A recording repeats them at the same addresses: what changes from one iteration to the next lies in
`Inputs`, all else is state that the kernels themselves update.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from training import checkpoint
from training.transfer import upload

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a function, which it may call before. Returns a function that replays it and returns the same tensor each
time. Raises RuntimeError if the function cannot be recorded."""
WARM_UP = 3
"""Calls before a recording: libraries select kernels and allocate in their first calls, which cannot be recorded."""


class Inputs:
    """What an iteration gets from the host, on the device at fixed addresses."""

    def __init__(self, batches: int, batch: int, turns: int, device: torch.device) -> None:
        self.index = torch.zeros(batches, batch, dtype=torch.int64, device=device)
        """The images of each batch."""
        self._numbers = torch.zeros(turns + 1, device=device)
        *self.rates, self.weight = self._numbers.unbind()
        """The learning rate of each turn, and the weight of the new values in the average, [] each."""

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
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Another thread may be writing a checkpoint. The outer context restores the stream after a failure.
                with torch.cuda.stream(current), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    outputs = function()
            except RuntimeError as error:
                # The generator would go on waiting for the end of the recording; a copy of it does not.
                generator = torch.cuda.default_generators[torch.cuda.current_device()]
                generator.graphsafe_set_state(generator.clone_state())
                raise RuntimeError(str(error.__context__ or error)) from error

        def replay() -> Tensor:
            graph.replay()
            return outputs

        return replay

    return record
