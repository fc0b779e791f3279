"""CUDA graphs: all kernels of a function at one launch.

A step of nets so small is a hundred kernels of microseconds each, which take longer to launch one by one than to run. A
graph is recorded once for each function and shape of what it takes, and replayed on what is put into its places.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Record = Callable[[Callable[[], Tensors]], tuple[Callable[[], Any], Tensors]]
"""Calls a function, and returns what calls it again and where that puts what comes out."""


class CudaGraphs:
    """Calls functions of `subject` and of tensors, by recordings that `record` makes of them.

    The functions return tensors, decide nothing by what is in those that they take, and leave the device alone but for
    kernels: no copy to or from the host, no waiting. What they return is the caller's own. For one thread at a time.
    """

    def __init__(self, subject: Any, record: Record) -> None:
        self.subject, self.record = subject, record
        self.recorded: dict[Any, tuple[Tensors, Callable[[], Any], Tensors]] = {}

    def __call__(self, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        key = function, *(x.shape for x in inputs)
        if key not in self.recorded:
            places = tuple(x.clone() for x in inputs)
            self.recorded[key] = places, *self.record(lambda: function(self.subject, *places))
        places, replay, found = self.recorded[key]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        replay()
        return tuple(x.clone() for x in found)


def cuda_recorder(device: torch.device) -> Record:
    """Records on a GPU; what it records shares memory, so that one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                function()  # libraries choose kernels and take memory at their first call, which cannot be recorded
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may draw from other models meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                found = function()
        return graph.replay, found

    return record
