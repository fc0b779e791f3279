"""The membership test: does the distance to the nearest draw tell training images from held-out ones?

Images of the training split are members, those of the test split are held out. A model that copies has draws nearer to
its members. This is the attack that needs nothing but draws (Chen et al. 2020, GAN-Leaks). It finds copies and
near-copies; an attack that knows the model's networks may find more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nearest import points
from training import metrics

MOST = 10_000
"""Members, and held-out images, that are compared."""
RESAMPLES = 1000
"""Of the bootstrap."""
MODEL, COPIES, HELD_OUT = "draws", "copies", "held out"
"""What stands for the draws: they themselves; for comparison, as many training images; and half the held-out images."""
Space = Callable[[Tensor], Tensor]
"""From images [N, C, H, W] uint8 to the points [N, D] between which distances are measured."""


@dataclass(frozen=True)
class Membership:
    """How well the distance to the nearest draw tells members from held-out images."""

    auc: float
    """The probability that a member is nearer than a held-out image, where equal distances count half: 0.5 if the
    distance says nothing, 1 if it tells all of them."""
    low: float
    """The ends of the 95 % interval of `auc`."""
    high: float
    recognised: float
    """The share of members that are as near as the nearest 1 % of the held-out images: 1 % if the distance says
    nothing. It shows a few copies, which the AUC averages away (Carlini et al. 2022)."""


def pixels(images: Tensor) -> Tensor:
    """The space of pixels; larger images are reduced to 32 pixels a side."""
    return points(images)


def compared(train: Tensor, test: Tensor) -> int:
    """The number of members, and of held-out images, that are compared."""
    return min(len(train), len(test), MOST)


def tests(train: Tensor, test: Tensor, draws: Tensor, spaces: Mapping[str, Space]) -> dict[str, dict[str, Membership]]:
    """The results for MODEL, COPIES and HELD_OUT, by the name of each space."""
    count = compared(train, test)
    chosen = (draws, choose(train, len(draws), seed=1), choose(train, count), choose(test, count))
    found: dict[str, dict[str, Membership]] = {case: {} for case in (MODEL, COPIES, HELD_OUT)}
    for name, space in spaces.items():
        drawn, copies, members, held_out = map(space, chosen)
        half = count // 2
        found[MODEL][name] = tell(drawn, members, held_out)
        found[COPIES][name] = tell(copies, members, held_out)
        found[HELD_OUT][name] = tell(held_out[:half], members[half:], held_out[half:])
    return found


def tell(draws: Tensor, members: Tensor, held_out: Tensor) -> Membership:
    """The membership test of points [N, D].

    The interval is the bootstrap's over members and held-out images. It covers neither other draws nor other trainings
    of the model.
    """
    near, far = (metrics.nearest(draws, points)[0] for points in (members, held_out))
    limit = far.kthvalue(metrics.nearest_percent(len(far))).values
    place = torch.cat((near, far)).unique(return_inverse=True)[1].numpy()
    one, other = place[: len(near)], place[len(near) :]
    random = np.random.default_rng(0)
    resampled = [auc(random.choice(one, len(one)), random.choice(other, len(other))) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Membership(auc(one, other), float(low), float(high), float((near <= limit).double().mean()))


def auc(members: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """The probability that a member's rank [M] is less than that of a held-out image [N]; equal ranks count half.

    Ranks are whole numbers from 0. It is the area under the ROC curve.
    """
    most = max(members.max(), held_out.max()) + 1
    count, other = (np.bincount(ranks, minlength=most) for ranks in (members, held_out))
    greater = len(held_out) - other.cumsum()
    return float((count * (greater + other / 2)).sum() / (len(members) * len(held_out)))


def choose(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """`count` of the images at random, or all of fewer."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]
