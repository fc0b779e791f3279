"""Layers whose rows come out the same, to the bit, in a batch of any size.

A library picks its kernel, and with it the order of the sums, by the batch's size. On one CPU thread two layers of the
nets here do: a GEMM of few rows, where 4 are enough on some CPUs and 16 on others, and a convolution of one image,
which leaves oneDNN for im2col. Both are led back to the kernel of larger batches; a convolution only where nothing is
learned. What makes convolutions quick where nothing is learned is here too, since it has to keep that promise.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE_BATCH = 32
"""A GEMM of so many and one of any more were never seen to differ."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x [B, inputs] and weight [outputs, inputs], with rows that do not depend on B."""
    count = len(x)
    if not x.is_cpu or count >= LARGE_BATCH:
        return _product(x, weight, bias)
    missing = max(0, min_invariant_rows(*weight.shape) - count)
    return _product(F.pad(x, (0, 0, 0, missing)) if missing else x, weight, bias)[:count]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if len(weight) > 1 or not x.is_cpu:
        return F.linear(x, weight, bias)
    # One output alone is no GEMM, and how its sums go depends on the rows beside it in every batch.
    y = F.linear(x, F.pad(weight, (0, 0, 0, 1)))[:, :1]
    return y if bias is None else y + bias


@cache
def min_invariant_rows(outputs: int, inputs: int) -> int:
    """The rows from which on a GEMM of this shape is summed in one order on this CPU, found by trying."""
    with torch.inference_mode():
        source = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(n, inputs, generator=source) for n in (LARGE_BATCH, outputs))
        truth, rows = _product(x, weight, None), LARGE_BATCH
        while rows > 1 and torch.equal(_product(x[: rows - 1], weight, None), truth[: rows - 1]):
            rows -= 1
        return rows


class Linear(nn.Linear):
    """`nn.Linear` for [B, inputs], likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, likewise at evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or len(x) > 1 or not x.is_cpu or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class SingleChannelConv(nn.Conv2d):
    """A convolution [B, C, H, W] -> [B, 1, H, W] of 3x3, likewise at evaluation.

    oneDNN computes one channel as it would sixteen. Nine products of all channels, one for each place in the kernel,
    and their sum, each moved to its place, take half the time.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not x.is_cpu:
            return super().forward(x)
        assert self.bias is not None
        kernel = self.weight[0].flatten(1).flip(1).T  # [9, C], backwards: `fold` moves products, not what they are of
        return F.fold(kernel @ x.flatten(2), x.shape[2:], 3, padding=1) + self.bias


class PrepackedConv(nn.Module):
    """A convolution that learns nothing any more, on a CPU: oneDNN gets its weights as it wants them laid out.

    It would lay them out anew at each call, which for a small batch takes as long as a tenth of the net; and where they
    are laid out as it does not want them, fifteen times as long as the convolution. What it wants depends on the
    processor and on height and width, so that is done when the first images come, whose size all others have.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        # No parameters, which a module looks up by a longer way.
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.weight, self.laid_out = layer.weight.detach(), False
        self.way: tuple[Any, ...] = (layer.stride, layer.dilation, layer.groups)
        if isinstance(layer, nn.ConvTranspose2d):
            self.way = (layer.padding, layer.output_padding, *self.way)
            self.call = torch.ops.mkldnn._convolution_transpose_pointwise.default
            self.lay_out = torch.ops.mkldnn._reorder_convolution_transpose_weight
        else:
            self.way = (layer.padding, *self.way)
            self.call = torch.ops.mkldnn._convolution_pointwise.default
            self.weight, self.lay_out = self.weight.to_mkldnn(), torch.ops.aten.mkldnn_reorder_conv2d_weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.laid_out:
            self.weight, self.laid_out = self.lay_out(self.weight, *self.way, x.shape), True
        y: Tensor = self.call(x, self.weight, self.bias, *self.way, "none", [], "")
        return y


def prepack_weights(module: nn.Module) -> None:
    """Replace the convolutions in `module`, which is on the CPU and only evaluated from now on; not to be saved."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(child, SingleChannelConv):
            setattr(module, name, PrepackedConv(child))
        else:
            prepack_weights(child)
