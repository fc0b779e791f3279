"""One batch over several processes, each of which has its rows of it, as `torchrun` starts them.

Process r of W has rows r, r + W, r + 2W, ... of every batch. All of them draw the same random numbers, those of the
whole batch, and keep what belongs to their rows; so losses, gradients and checkpoints are those of one process, to
rounding, whatever W is. Where there is no group of processes, W is 1 and nothing here does anything.

A mean over rows is the mean of the processes' means, and needs nothing. What takes a batch as a whole asks for it here:
`gathered` codes, batch norm's averages, a count.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


@contextmanager
def process_group() -> Iterator[int]:
    """Within it, this process shares its batches with those that `torchrun` started beside it; alone if it did not.

    Gives the number of this process on its machine, from 0.
    """
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield int(os.environ["LOCAL_RANK"])
    finally:
        dist.destroy_process_group()


def size() -> int:
    """W, the processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """r, which of them this is: 0 to W - 1."""
    return dist.get_rank() if size() > 1 else 0


def shard(x: Tensor) -> Tensor:
    """This process's rows of x [B W, ...]: [B, ...]."""
    return x[rank() :: size()]


def randn(count: int, *shape: int, device: torch.device) -> Tensor:
    """N(0, 1) for `count` rows of this process: [count, *shape]."""
    return shard(torch.randn(count * size(), *shape, device=device))


def rand(count: int, *shape: int, device: torch.device) -> Tensor:
    """Even numbers in [0, 1) for `count` rows of this process: [count, *shape]."""
    return shard(torch.rand(count * size(), *shape, device=device))


def randint(high: int, count: int, device: torch.device) -> Tensor:
    """Whole numbers in 0..high-1 for `count` rows of this process: [count] int64."""
    return shard(torch.randint(high, (count * size(),), device=device))


def all_gather(x: Tensor) -> Tensor:
    """The rows of all processes, in their order: [B, ...] -> [B W, ...], differentiable."""
    if size() == 1:
        return x
    whole = x.new_zeros(len(x) * size(), *x.shape[1:])
    whole[rank() :: size()] = x
    return _Sum.apply(whole)


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of all processes' x, which has the same shape in each; differentiable."""
    return _Sum.apply(x) / size() if size() > 1 else x


class _Sum(torch.autograd.Function):
    """The sum of all processes' x. Each of them moves the losses of all, so gradients are summed as well."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def all_reduce_mean_(tensors: Sequence[Tensor]) -> None:
    """Put all processes' mean into each of `tensors`, by one exchange. Not differentiable."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, (flat / size()).split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Put what the first process has into `tensors` of all."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def any_of(here: bool) -> bool:
    """Whether `here` is true in any of them."""
    if size() == 1:
        return here
    flag = torch.tensor(int(here))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the averages of all processes' rows.

    torch's SyncBatchNorm does that on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and size() > 1:
            # Here, and not on the method: it imports torch.compile's machinery, which takes as long as all the rest.
            return torch.compiler.disable(self._synchronized)(x)
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
        """Move the running averages by those of `count` numbers, as torch's own batch norm does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(average, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
