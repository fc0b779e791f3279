"""CUDA graphs: one launch for all kernels of a function.

A step of these small nets is a hundred kernels of a few microseconds each, which take longer to launch one by one than
to run. A graph is recorded once per function and input shapes, and then replayed on new inputs.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.cuda_graph import record_graph

Tensors = tuple[Tensor, ...]
Record = Callable[[Callable[[], Tensors]], tuple[Callable[[], Any], Tensors]]
"""Records a function. Returns a callable that replays it, and the tensors that each replay writes its results to."""


class CudaGraphs:
    """Calls functions of `subject` and tensors by replaying recordings that `record` makes of them.

    Each function returns tensors, has no branches that depend on the values of its inputs, and only launches kernels:
    no copies to or from the host and no synchronisation. The returned tensors are copies that belong to the caller.
    Keyword arguments are numbers that the function may branch on; each combination of them is a recording of its own.
    To record a function calls it, too, with `example(x)` for each input x: where functions change the subject, with
    inputs for which this has no effect. Not thread-safe.
    """

    def __init__(self, subject: Any, record: Record, example: Callable[[Tensor], Tensor] = torch.clone) -> None:
        self.subject, self.record, self.example = subject, record, example
        self.recordings: dict[Any, tuple[Tensors, Callable[[], Any], Tensors]] = {}

    def __call__(self, function: Callable[..., Tensors], *inputs: Tensor, **options: Hashable) -> Tensors:
        key = function, tuple(options.items()), *(x.shape for x in inputs)
        if key not in self.recordings:
            buffers = tuple(self.example(x) for x in inputs)
            self.recordings[key] = buffers, *self.record(lambda: function(self.subject, *buffers, **options))
        buffers, replay, outputs = self.recordings[key]
        for buffer, x in zip(buffers, inputs, strict=True):
            buffer.copy_(x)
        replay()
        return tuple(x.clone() for x in outputs)

    @contextmanager
    def record_again(self) -> Iterator[None]:
        """Within the block functions are recorded again; the new recordings then replace the earlier ones."""
        earlier, self.recordings = self.recordings, {}
        try:
            yield
        finally:
            self.recordings = earlier | self.recordings


def cuda_recorder(device: torch.device) -> Record:
    """A recorder for a GPU. Its recordings share memory, so only one may run at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        graph, outputs = record_graph(function, device, pool=pool)
        return graph.replay, outputs

    return record
