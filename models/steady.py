"""Layers whose rows come out the same, to the bit, in a batch of any size.

A library picks its kernel, and with it the order of the sums, by the batch's size. On one CPU thread two layers of the
nets here do: a GEMM of fewer than 4 rows runs as products of vectors, and a convolution of one image leaves oneDNN for
im2col. Both are led back to the kernel of larger batches; a convolution only where nothing is learned.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x [B, inputs] and weight [outputs, inputs], with rows that do not depend on B."""
    missing = max(0, FEWEST_ROWS - len(x))
    return F.linear(F.pad(x, (0, 0, 0, missing)) if missing else x, weight, bias)[: len(x)]


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
