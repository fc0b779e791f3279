"""Loss terms that several families share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models import parallel

UNIFORM_SHARE = 0.25
"""Share of training times that are uniform, because long schedules and inversion visit all times. The others come from
`sample_log_snr`."""
MIN_REMAINING_TIME = 0.25
"""The lower bound on 1 - t in losses of velocities. Below it the nearly clean times outweigh all others."""


def sample_log_snr(count: int, device: torch.device) -> Tensor:
    """log(signal / noise) [count] ~ N(-0.8, 0.8^2): mostly the noisy times at which the digit is decided.

    As for most of the times of Li & He 2025, arXiv 2511.13720.
    """
    return 0.8 * parallel.randn(count, device=device) - 0.8


def mix_times(noisy: Tensor, uniform: Tensor) -> Tensor:
    """Training times [B]: a random UNIFORM_SHARE of them from `uniform` [B], the others from `noisy` [B]."""
    return torch.where(parallel.rand(len(noisy), device=noisy.device) < UNIFORM_SHARE, uniform, noisy)


def column(values: Tensor, x: Tensor) -> Tensor:
    """Numbers [B] in the shape that multiplies x [B, ...]."""
    return values.view(-1, *[1] * (x.dim() - 1))


def velocity_errors(predicted: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """Squared errors of velocities at `time` [B] on paths that end at x, and by the net at `predicted`: [B, ...].

    Both velocities, (end - x_t) / (1 - t), share x_t, so their difference is that of the ends over 1 - t.
    """
    return ((predicted - x) / (1 - column(time, x)).clamp(min=MIN_REMAINING_TIME)).square()


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """|x - reconstruction|^2 summed over pixels, averaged over images: [B, ...] twice -> scalar."""
    return (x - reconstruction).square().flatten(1).sum(1).mean()


def sliced_wasserstein(a: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    """SW_2^2 of clouds a and b [N, D] over directions theta [D, P] of length 1: scalar (Bonneel et al. 2015)."""
    return ((a @ theta).sort(dim=0).values - (b @ theta).sort(dim=0).values).square().mean()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)_label, averaged over the rows with a known label (not -1): [B, C] and [B] -> scalar."""
    known = label >= 0
    losses = F.cross_entropy(logits, label.clamp(min=0), reduction="none")
    count = parallel.all_reduce_mean(known.sum().float()).clamp(min=1 / parallel.size())
    return (losses * known).sum() / count


def squared_gradient(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """|grad_x critic(x)|^2 of each row of x [B, ...], differentiable: [B]. `critic` maps x to one number per row."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def r1_r2_penalties(
    critic: Callable[[Tensor], Tensor], x: Tensor, generated: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """The penalties R1 and R2, E|grad critic|^2 at x and at generated [B, ...]: scalars (Mescheder et al. 2018).

    An unbiased estimate from the first `share` of the rows, because second derivatives cost more than the game itself.
    """
    r1, r2 = (squared_gradient(critic, leading_share(side, share)).mean() for side in (x, generated))
    return r1, r2


def leading_share(x: Tensor, share: float) -> Tensor:
    """The first `share` of the rows of x [B, ...], at least one."""
    return x[: max(1, round(share * len(x)))]
