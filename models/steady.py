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


class ToPlane(nn.Conv2d):
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
        height, width = x.shape[2:]
        kernel = self.weight[0].flatten(1).T.contiguous()  # [9, C]
        products = (kernel @ x.flatten(2)).unflatten(2, (height, width))  # [B, 9, H, W]
        products = F.pad(products, (1, 1, 1, 1))
        y = self.bias + products[:, 0, :height, :width]
        for i in range(1, 9):
            top, left = divmod(i, 3)
            y += products[:, i, top : top + height, left : left + width]
        return y[:, None]
