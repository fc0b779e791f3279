"""Randomness as a pure function of (seed, image index, step).

No generator object exists: every number is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) of a counter that spells out what the number is for. A row therefore draws the same noise alone, in
any batch, on any machine, and image i of a request can be drawn without images 0..i-1.

    key     = the seed, 64 bits
    counter = (block within the draw, step, image index low, image index high)
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

START = 0
"""The step whose noise makes the first state; links of the chain use 1, 2, ..."""
LABEL = 2**32 - 1
"""The step reserved for drawing a class where the caller names none."""

CHOICE = 2**32 - 2
"""The step reserved for choosing a component of a mixture, or a point of a density."""

MAX_SEED = 2**63 - 1

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = TypeVar("Words", Tensor, NDArray[np.int64])


def philox(counter: Words, key: Words) -> Words:
    """Philox4x32-10: counter [4, ...] and key [2, ...] of 32-bit words in int64 -> random words [4, ...] in int64.

    Of tensors or of arrays: a CPU gets through many small operations four times as fast in NumPy.
    """
    shape = (2,) + (1,) * (counter.ndim - 1)
    multiplier, weyl = (_like(counter, pair).reshape(shape) for pair in (_MULTIPLIERS, _WEYL))
    even, odd = counter[0::2], counter[1::2]
    for _ in range(10):
        # The 64-bit product wraps in int64; its bits are right, so the arithmetic shift only needs masking.
        product = even * multiplier
        even = _swapped((product >> 32) & _MASK) ^ odd ^ key
        odd = _swapped(product & _MASK)
        key = (key + weyl) & _MASK
    return _stacked(even[0], odd[0], even[1], odd[1])


def _like(words: Words, values: Sequence[int]) -> Words:
    return words.new_tensor(values) if isinstance(words, Tensor) else np.array(values, np.int64)


def _swapped(pair: Words) -> Words:
    return pair.flip(0) if isinstance(pair, Tensor) else pair[::-1]


def _stacked(*parts: Words) -> Words:
    return torch.stack(parts) if isinstance(parts[0], Tensor) else np.stack(parts)


def bits(seed: Tensor, index: Tensor, step: Tensor, words: int) -> Tensor:
    """32 random bits as int64 [B, words] for seed, index, step [B] int64; `words` is rounded up to a multiple of 4."""
    if seed.is_cpu:
        return torch.from_numpy(_bits(seed.numpy(), index.numpy(), step.numpy(), words))
    return _bits(seed, index, step, words)


def _bits(seed: Words, index: Words, step: Words, words: int) -> Words:
    block = _like(seed, range(-(-words // 4)))
    nil = block * 0
    spread = [(part & _MASK)[:, None] + nil for part in (step, index, index >> 32)]
    key = _stacked(seed & _MASK, (seed >> 32) & _MASK)[:, :, None]
    drawn = philox(_stacked(block + spread[0] * 0, *spread), key)  # [4, B, blocks]
    return drawn.swapaxes(0, 1).swapaxes(1, 2).reshape(len(seed), -1)


def normal(seed: Tensor, index: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals [B, *shape] in float32, by Box and Muller (1958).

    The transform runs in float64 and is rounded once, so that the last bit of another device's log or cosine rarely
    shows in the float32 that anything else sees.
    """
    size = math.prod(shape)
    words = bits(seed, index, step, size)
    uniform = (words.to(torch.float64) + 0.5) * 2.0**-32  # (0, 1), never an end
    first, second = uniform.unflatten(1, (-1, 2)).unbind(2)
    radius, angle = torch.sqrt(-2 * torch.log(first)), 2 * math.pi * second
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
    return pairs.flatten(1)[:, :size].to(torch.float32).unflatten(1, shape)


def first(seed: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The standard normals [B, *shape] that a chain starts from."""
    return normal(seed, index, torch.full_like(seed, START), shape)


def classes(seed: Tensor, index: Tensor, count: int) -> Tensor:
    """A class [B] int64 in 0..count-1 for each row, uniform (to 2**-32)."""
    words = bits(seed, index, torch.full_like(seed, LABEL), 1)[:, 0]
    return (words * count) >> 32


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """One number [B] float64 in (0, 1) for each row: for choosing among what is not equally likely."""
    words = bits(seed, index, torch.full_like(seed, CHOICE), 1)[:, 0]
    return (words.to(torch.float64) + 0.5) * 2.0**-32
