"""The recording of a function as a CUDA graph, which the device then replays with one launch."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def record_graph(
    function: Callable[[], T], device: torch.device, *, warm_up: int = 1, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record `function`, and return the graph with the tensors that each replay writes its results to.

    It is called `warm_up` times before: libraries select kernels and allocate in their first calls, which cannot be
    recorded. Recordings with the same `pool` share memory. Other threads may use the GPU at the same time. Raises
    RuntimeError if the function cannot be recorded; streams and random numbers are then usable as before.
    """
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context restores the stream after a failure.
            with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = function()
        except RuntimeError as error:
            # The generator would go on waiting for the end of the recording; a copy of it does not.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise RuntimeError(str(error.__context__ or error)) from error
    return graph, outputs
