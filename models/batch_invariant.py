"""Batch-invariant layers: a row's output has the same bits in a batch of any size.

A library selects its kernel, and with it the order of a sum's terms, by batch size. On one CPU thread two layers of
these nets are affected: a GEMM of few rows (4 rows suffice on some CPUs, 16 on others) and a convolution of one image,
which torch computes by im2col instead of oneDNN. Both are made to use the kernel of larger batches; the convolution
only in eval mode. The module also contains the faster convolutions of inference, which must be batch-invariant, too.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE_BATCH = 32
"""Rows from which a GEMM's rows never differed between batch sizes in any measurement."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x [B, inputs] and weight [outputs, inputs]; a row's bits do not depend on B."""
    count = len(x)
    if not x.is_cpu or count >= LARGE_BATCH:
        return _product(x, weight, bias)
    missing = max(0, min_invariant_rows(*weight.shape) - count)
    return _product(F.pad(x, (0, 0, 0, missing)) if missing else x, weight, bias)[:count]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if len(weight) > 1 or not x.is_cpu:
        return F.linear(x, weight, bias)
    # A single output is no GEMM: the order of its sums depends on the other rows at every batch size.
    y = F.linear(x, F.pad(weight, (0, 0, 0, 1)))[:, :1]
    return y if bias is None else y + bias


@cache
def min_invariant_rows(outputs: int, inputs: int) -> int:
    """The fewest rows with which a GEMM of this shape gives the bits of a large batch on this CPU, by trial."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(n, inputs, generator=generator) for n in (LARGE_BATCH, outputs))
        expected, rows = _product(x, weight, None), LARGE_BATCH
        while rows > 1 and torch.equal(_product(x[: rows - 1], weight, None), expected[: rows - 1]):
            rows -= 1
        return rows


class Linear(nn.Linear):
    """A batch-invariant `nn.Linear` for [B, inputs]."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """An `nn.Conv2d` that is batch-invariant in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or len(x) > 1 or not x.is_cpu or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        assert not isinstance(self.padding, str)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class SingleChannelConv(nn.Conv2d):
    """A 3x3 convolution [B, C, H, W] -> [B, 1, H, W] that is batch-invariant in eval mode.

    oneDNN spends the time of sixteen output channels on one. Nine products over the channels, one per kernel position,
    each shifted to its position and summed, take half the time.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not x.is_cpu:
            return super().forward(x)
        assert self.bias is not None
        kernel = self.weight[0].flatten(1).flip(1).T  # [9, C]; reversed: `fold` shifts outputs, not inputs
        return F.fold(kernel @ x.flatten(2), x.shape[2:], 3, padding=1) + self.bias


class PrepackedConv(nn.Module):
    """A frozen convolution on a CPU whose weights are stored in oneDNN's own layout.

    Otherwise oneDNN reorders the weights at each call, which takes a tenth of a net's time for a small batch, and
    fifteen times as long as the convolution itself for an unsuitable layout. The layout depends on the processor and
    on height and width, so the first call reorders the weights; all later inputs have the same height and width.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        # Plain attributes: a module's parameters take longer to look up.
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.weight, self.reordered = layer.weight.detach(), False
        self.geometry: tuple[Any, ...] = (layer.stride, layer.dilation, layer.groups)
        if isinstance(layer, nn.ConvTranspose2d):
            self.geometry = (layer.padding, layer.output_padding, *self.geometry)
            self.convolve = torch.ops.mkldnn._convolution_transpose_pointwise.default
            self.reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        else:
            self.geometry = (layer.padding, *self.geometry)
            self.convolve = torch.ops.mkldnn._convolution_pointwise.default
            self.weight, self.reorder = self.weight.to_mkldnn(), torch.ops.aten.mkldnn_reorder_conv2d_weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.reordered:
            self.weight, self.reordered = self.reorder(self.weight, *self.geometry, x.shape), True
        y: Tensor = self.convolve(x, self.weight, self.bias, *self.geometry, "none", [], "")
        return y


def prepack_weights(module: nn.Module) -> None:
    """Replace the convolutions of `module` by `PrepackedConv`. For inference on a CPU; the result cannot be saved."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(child, SingleChannelConv):
            setattr(module, name, PrepackedConv(child))
        else:
            prepack_weights(child)
