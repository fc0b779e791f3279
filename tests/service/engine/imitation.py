"""Imitations of what a GPU does beside computing: recordings, and copies that arrive later."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from service.engine.graphs import Tensors
from service.engine.transfers import Wait


def imitate_recorder(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
    """Like a graph: each replay reads the recorded inputs and writes to the recorded outputs."""
    outputs = function()

    def replay() -> None:
        for output, x in zip(outputs, function(), strict=True):
            output.copy_(x)

    return replay, outputs


def imitate_copies(tensors: Sequence[Tensor]) -> Wait:
    """Like a stream of copies: values of the time of the call, which can be read once."""
    copies = [[tensor.clone() for tensor in tensors]]
    return lambda: [copy.numpy() for copy in copies.pop()]
