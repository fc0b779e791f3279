"""Randomness as a pure function of (seed, image index, step).

No generator object exists: every number is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) of a counter that spells out what the number is for. A row therefore draws the same noise alone, in
any batch, on any machine, and image i of a request can be drawn without images 0..i-1.

    key     = the seed, 64 bits
    counter = (block within the draw, step, image index low, image index high)
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

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

ROUNDS = 10
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = TypeVar("Words", Tensor, NDArray[Any])


def philox(counter: Words, key: Words) -> Words:
    """Philox4x32-10: counter [4, ...] and key [2, ...] of 32-bit words in int64 -> random words [4, ...] in int64.

    Of tensors or of arrays: a CPU gets through many small operations several times as fast in NumPy.
    """
    even, odd = _philox(counter, key)
    return _stacked(even[0], odd[0], even[1], odd[1])


def _philox(counter: Words, key: Words) -> tuple[Words, Words]:
    """Words 0 and 2, and words 1 and 3, [2, ...] each."""
    multiplier, weyl = (_like(counter, pair) for pair in (_MULTIPLIERS, _WEYL))
    rounds = _counted(counter, ROUNDS)[:, None] * weyl
    single = (1,) * (counter.ndim - 1)
    multiplier, rounds = multiplier.reshape(2, *single), rounds.reshape(ROUNDS, 2, *single)
    even, odd = counter[0::2], counter[1::2]
    for round_key in (key + rounds) & _MASK:
        # The 64-bit product wraps in int64; its bits are right, so the arithmetic shift only needs masking.
        product = even * multiplier
        even = _swapped((product >> 32) & _MASK) ^ odd ^ round_key
        odd = _swapped(product & _MASK)
    return even, odd


def _like(words: Words, values: Sequence[int]) -> Words:
    if not isinstance(words, Tensor):
        return np.array(values, np.int64)
    found = words.new_empty(len(values))
    for place, value in zip(found, values, strict=True):
        place.fill_(value)  # where it is: nothing is sent to a GPU, whose graphs would not have it
    return found


def _counted(words: Words, count: int) -> Words:
    """0, 1, ... [count]."""
    if isinstance(words, Tensor):
        return torch.arange(count, device=words.device)
    return np.arange(count)


def _swapped(pair: Words) -> Words:
    return pair.flip(0) if isinstance(pair, Tensor) else pair[::-1]


def _stacked(*parts: Words) -> Words:
    return torch.stack(parts) if isinstance(parts[0], Tensor) else np.stack(parts)


def _drawn(seed: Tensor, index: Tensor, step: Tensor, words: int) -> tuple[Any, Any]:
    """Words 0 and 2, and words 1 and 3, of as many blocks as hold so many words: [2, B, blocks] each.

    Arrays where the tensors are the CPU's.
    """
    if not seed.is_cpu:
        return _blocks(seed, index, step, words)
    return _blocks(seed.numpy(), index.numpy(), step.numpy(), words)


def _blocks(seed: Words, index: Words, step: Words, words: int) -> tuple[Words, Words]:
    block = _counted(seed, -(-words // 4))[None, :]
    rest = [(part & _MASK)[:, None] + 0 * block for part in (step, index, index >> 32)]
    key = _stacked(seed & _MASK, (seed >> 32) & _MASK)[:, :, None]
    return _philox(_stacked(block + 0 * rest[0], *rest), key)


def bits(seed: Tensor, index: Tensor, step: Tensor, words: int) -> Tensor:
    """32 random bits as int64 [B, words] for seed, index, step [B] int64; `words` is rounded up to a multiple of 4."""
    return torch.as_tensor(_rows(_stacked(*_drawn(seed, index, step, words))))


def normal(seed: Tensor, index: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals [B, *shape] in float32, by Box and Muller (1958): of words 0 and 1, and of words 2 and 3.

    The transform runs in float64 and is rounded once, so that the last bit of another library's log or cosine rarely
    shows in the float32 that anything else sees.
    """
    size = math.prod(shape)
    even, odd = _drawn(seed, index, step, size)
    xp = _library(even)
    first, second = (_uniform(words) for words in (even, odd))
    radius, angle = xp.sqrt(-2 * xp.log(first)), 2 * math.pi * second
    pairs = _stacked(radius * xp.cos(angle), radius * xp.sin(angle))
    return torch.as_tensor(_rows(pairs)[:, :size]).to(torch.float32).reshape(len(seed), *shape)


def _rows(words: Words) -> Words:
    """The two halves of each pair and the two pairs of each block [2, 2, B, blocks] in order: [B, 4 blocks]."""
    return words.swapaxes(0, 2).swapaxes(1, 3).swapaxes(2, 3).reshape(words.shape[2], -1)


def _library(words: Words) -> Any:
    """NumPy for arrays, torch for tensors; the names used here are the same."""
    return torch if isinstance(words, Tensor) else np


def _uniform(words: Words) -> Words:
    """float64 in (0, 1), never an end."""
    return ((words.to(torch.float64) if isinstance(words, Tensor) else words) + 0.5) * 2.0**-32


def first(seed: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The standard normals [B, *shape] that a chain starts from."""
    return normal(seed, index, torch.full_like(seed, START), shape)


def classes(seed: Tensor, index: Tensor, count: int) -> Tensor:
    """A class [B] int64 in 0..count-1 for each row, uniform (to 2**-32)."""
    words = bits(seed, index, torch.full_like(seed, LABEL), 1)[:, 0]
    return (words * count) >> 32


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """One number [B] float64 in (0, 1) for each row: for choosing among what is not equally likely."""
    return _uniform(bits(seed, index, torch.full_like(seed, CHOICE), 1)[:, 0])
