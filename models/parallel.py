"""Data parallelism: one batch split over the processes that `torchrun` starts.

Process r of W has rows r, r + W, r + 2W, ... of every batch. All processes generate the random numbers of the whole
batch and keep those of their own rows. Losses, gradients and checkpoints are therefore those of one process, up to
rounding, for any W. Without a process group W is 1 and nothing here has an effect.

A mean over rows is the mean of the processes' means and needs no exchange. This module exchanges what depends on the
whole batch: codes (`all_gather`), the averages of batch norm, and counts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

_alone = False
"""Whether `alone` is in effect."""


@contextmanager
def process_group() -> Iterator[int]:
    """Join the process group of `torchrun` for the duration of the context; no effect without `torchrun`.

    Yields the rank of this process on its machine, from 0.
    """
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield int(os.environ["LOCAL_RANK"])
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """In the block this process computes as if it were the only one: it neither shares batches nor waits for others."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def size() -> int:
    """W, the number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """r, the rank of this process: 0 to W - 1."""
    return dist.get_rank() if size() > 1 else 0


def shard(x: Tensor) -> Tensor:
    """This process's rows of x [B W, ...]: [B, ...]."""
    return x[rank() :: size()]


def randn(count: int, *shape: int, device: torch.device) -> Tensor:
    """N(0, 1) for `count` rows of this process: [count, *shape]."""
    return shard(torch.randn(count * size(), *shape, device=device))


def rand(count: int, *shape: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) for `count` rows of this process: [count, *shape]."""
    return shard(torch.rand(count * size(), *shape, device=device))


def randint(high: int, count: int, device: torch.device) -> Tensor:
    """Uniform integers in 0..high-1 for `count` rows of this process: [count] int64."""
    return shard(torch.randint(high, (count * size(),), device=device))


def all_gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of the whole batch: [B, ...] -> [B W, ...], differentiable."""
    if size() == 1:
        return x
    whole = x.new_zeros(len(x) * size(), *x.shape[1:])
    whole[rank() :: size()] = x
    return _Sum.apply(whole)


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over processes of x, which has the same shape in each; differentiable."""
    return _Sum.apply(x) / size() if size() > 1 else x


class _Sum(torch.autograd.Function):
    """The sum over processes of x. Each x affects the losses of all processes, so `backward` sums gradients, too."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def all_reduce_mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each of `tensors` by its mean over processes, in one exchange. Not differentiable."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, (flat / size()).split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Copy the first process's `tensors` to all processes."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def any_of(condition: bool) -> bool:
    """Whether `condition` is true in any process."""
    if size() == 1:
        return condition
    flag = torch.tensor(int(condition))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the rows of all processes.

    torch's SyncBatchNorm supports GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and size() > 1:
            return self._synchronized(x)
        return super().forward(x)

    def _synchronized(self, x: Tensor) -> Tensor:
        average = all_reduce_mean(x.mean((0, 2, 3)))
        centred = x - average[:, None, None]
        variance = all_reduce_mean(centred.square().mean((0, 2, 3)))
        self._update_running_stats(average.detach(), variance.detach(), x.numel() // x.shape[1] * size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _update_running_stats(self, average: Tensor, variance: Tensor, count: int) -> None:
        """Update the running averages by those of `count` numbers, as torch's own batch norm does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(average, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
