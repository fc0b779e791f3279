"""Randomness as a pure function of (seed, image index, step).

There is no generator object: each number is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) of a counter that identifies it. A row therefore gets the same noise alone, in any batch and on any
machine, and image i of a request does not need images 0..i-1.

    key     = the seed, 64 bits
    counter = (block within the noise, step, image index low, image index high)
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import kernels

INITIAL_STEP = 0
"""The step whose noise is the initial state; the steps of the chain are 1, 2, ..."""
LABEL_STEP = 2**32 - 1
"""The step reserved for sampling a class if the request names none."""

CHOICE_STEP = 2**32 - 2
"""The step reserved for choosing a component of a mixture, or a point of a kernel density estimate."""

MAX_SEED = 2**63 - 1

ROUNDS = 10
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = np.uint64(_MASK), np.uint64(32)
_MULTIPLIER = np.array(_MULTIPLIERS, np.uint64)[:, None, None]
_ROUND_KEYS = np.array([[k * word for word in _WEYL] for k in range(ROUNDS)], np.uint64)[:, :, None, None]

Words = TypeVar("Words", Tensor, NDArray[Any])
"""Tensors on a GPU, arrays on a CPU: there NumPy runs many small operations several times as fast as torch."""


def philox(counter: Words, key: Words) -> tuple[Words, Words]:
    """Philox4x32-10 of counter [4, B, blocks] and key [2, B, 1]: words 0 and 2, and words 1 and 3, [2, B, blocks] each.

    Tensors hold a word's 32 bits in int64, for lack of a wider unsigned type; arrays hold them in uint64.
    """
    return _philox(counter, key) if isinstance(counter, Tensor) else _philox_in_place(counter, key)


def _philox(counter: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    multiplier, weyl = (_full_words(counter, pair)[:, None, None] for pair in (_MULTIPLIERS, _WEYL))
    rounds = torch.arange(ROUNDS, device=counter.device)[:, None, None, None] * weyl
    even, odd = counter[0::2], counter[1::2]
    for round_key in (key + rounds) & _MASK:
        # The 64-bit product wraps in int64, but its bits are correct: the arithmetic shift only needs a mask.
        product = even * multiplier
        even = ((product >> 32) & _MASK).flip(0) ^ odd ^ round_key
        odd = (product & _MASK).flip(0)
    return even, odd


def _full_words(words: Tensor, values: Sequence[int]) -> Tensor:
    """`values` as a tensor on the device of `words`, without a copy from the host, which CUDA graphs cannot contain."""
    tensor = words.new_empty(len(values))
    for element, value in zip(tensor, values, strict=True):
        element.fill_(value)
    return tensor


def _philox_in_place(counter: NDArray[Any], key: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Philox4x32-10 with few operations: for arrays this small, the number of operations determines the time."""
    even, odd = counter[0::2].copy(), counter[1::2].copy()
    product = np.empty_like(even)
    for round_key in (key + _ROUND_KEYS) & _LOW:
        np.multiply(even, _MULTIPLIER, out=product)
        np.right_shift(product[::-1], _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        np.bitwise_and(product[::-1], _LOW, out=odd)
    return even, odd


def _random_words(seed: Tensor, index: Tensor, step: Tensor, words: int) -> tuple[Any, Any]:
    """Words 0 and 2, and words 1 and 3, of enough blocks for `words` words: [2, B, blocks] each.

    Arrays for tensors on the CPU, and for those on Apple's GPU: it has no float64, which `normal` and `uniform` need.
    The bits are those of the CPU. Its speed is unmeasured.
    """
    if seed.device.type == "mps":
        seed, index, step = seed.cpu(), index.cpu(), step.cpu()
    count, blocks = len(seed), -(-words // 4)
    counter: Any
    key: Any
    if seed.is_cpu:
        counter, key = np.empty((4, count, blocks), np.uint64), np.empty((2, count, 1), np.uint64)
        counter[0] = np.arange(blocks)
        row: Any = [part.numpy()[:, None] for part in (seed, index, step)]
    else:
        counter, key = seed.new_empty((4, count, blocks)), seed.new_empty((2, count, 1))
        counter[0] = torch.arange(blocks, device=seed.device)
        row = [part[:, None] for part in (seed, index, step)]
    key[0], key[1] = row[0] & _MASK, row[0] >> 32
    counter[1], counter[2], counter[3] = row[2] & _MASK, row[1] & _MASK, row[1] >> 32
    return philox(counter, key)


def bits(seed: Tensor, index: Tensor, step: Tensor, words: int) -> Tensor:
    """32 random bits as int64 [B, words] for seed, index, step [B] int64; `words` is rounded up to a multiple of 4."""
    return _interleave(*_random_words(seed, index, step, words), torch.int64).to(seed.device)


def normal(seed: Tensor, index: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals [B, *shape] in float32, by Box and Muller (1958) from words 0 and 1, and from words 2 and 3.

    The transform runs in float64 and rounds once, so a different last bit in a library's log or cosine rarely changes
    the float32 result.
    """
    return kernels.choose(torch_normal, seed)(seed, index, step, shape)


def torch_normal(seed: Tensor, index: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`normal` by operations of torch, or of NumPy on a CPU."""
    size = math.prod(shape)
    even, odd = _random_words(seed, index, step, size)
    xp: Any = torch if isinstance(even, Tensor) else np  # the functions used here have the same names
    radius, angle = xp.sqrt(-2 * xp.log(_uniform(even))), 2 * math.pi * _uniform(odd)
    normals = _interleave(radius * xp.cos(angle), radius * xp.sin(angle), torch.float32)
    return normals[:, :size].reshape(len(seed), *shape).to(seed.device)


def _interleave(first: Words, second: Words, dtype: torch.dtype) -> Tensor:
    """Interleave the first and second numbers of a block's two pairs, [2, B, blocks] each: [B, 4 blocks]."""
    _, count, blocks = first.shape
    device = first.device if isinstance(first, Tensor) else None
    pairs = torch.empty((count, blocks, 2, 2), dtype=dtype, device=device)
    target: Any = pairs if isinstance(first, Tensor) else pairs.numpy()
    for k, part in enumerate((first, second)):
        target[..., k] = part.swapaxes(0, 1).swapaxes(1, 2)
    return pairs.reshape(count, 4 * blocks)


def _uniform(words: Words) -> Words:
    """float64 in the open interval (0, 1)."""
    return ((words.to(torch.float64) if isinstance(words, Tensor) else words) + 0.5) * 2.0**-32


def initial(seed: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The standard normals [B, *shape] of an initial state."""
    return normal(seed, index, torch.full_like(seed, INITIAL_STEP), shape)


def classes(seed: Tensor, index: Tensor, count: int) -> Tensor:
    """A class [B] int64 in 0..count-1 for each row, uniform (to 2**-32)."""
    words = bits(seed, index, torch.full_like(seed, LABEL_STEP), 1)[:, 0]
    return (words * count) >> 32


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """One number [B] float64 in (0, 1) per row, for choosing among weighted options; on the CPU for Apple's GPU."""
    words = _random_words(seed, index, torch.full_like(seed, CHOICE_STEP), 1)
    return _uniform(_interleave(*words, torch.int64)[:, 0])
