"""Fused kernels for CUDA GPUs, in Triton: noise, and group norm with modulation and SiLU.

A step of diffusion is hundreds of kernels of a few microseconds. For the noise of 512 images of 784 pixels an H100
takes 242 us by torch's operations and 16 us by one kernel. `install` proves each kernel on the device against the
operations that it replaces; one that does not compile or differs is not used. Only for machines with Triton.
"""

import logging
import math
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from models import kernels, nets, noise

log = logging.getLogger(__name__)

NOISE_BLOCK = 256
"""Blocks of four numbers per program."""
MAX_GROUP = 16_384
"""Numbers of a group that one program normalizes; larger ones are left to torch."""
TOLERANCE = 1e-4
"""The largest difference of a norm from torch's, whose sums have another order."""


@triton.jit  # type: ignore[untyped-decorator]
def normal_kernel(seed, index, step, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0) of out [B, size]; see `noise.normal`."""
    row = tl.program_id(0)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key, image, number = tl.load(seed + row), tl.load(index + row), tl.load(step + row)
    zero = tl.zeros([BLOCK], tl.uint32)
    low, high = zero + image.to(tl.uint32), zero + (image >> 32).to(tl.uint32)
    first, second, third, fourth = tl.philox(key, block.to(tl.uint32), zero + number.to(tl.uint32), low, high)
    for pair in tl.static_range(2):
        word = first if pair == 0 else third
        other = second if pair == 0 else fourth
        radius = tl.sqrt(-2.0 * tl.log((word.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
        angle = 6.283185307179586 * ((other.to(tl.float64) + 0.5) * 2.3283064365386963e-10)
        at = block * 4 + 2 * pair
        to = out + row.to(tl.int64) * size + at
        tl.store(to, (radius * tl.cos(angle)).to(tl.float32), mask=at < size)
        tl.store(to + 1, (radius * tl.sin(angle)).to(tl.float32), mask=at + 1 < size)


@triton.jit  # type: ignore[untyped-decorator]
def group_norm_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    modulation,
    out,
    positions,
    channels,
    stride,
    eps,
    AFFINE: tl.constexpr,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    GROUP: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Group program_id(1) of row program_id(0) of x and out [B, positions, channels]; see `nets.group_norm`.

    A group has GROUP channels. POSITIONS and WIDTH are the powers of two from `positions` and from GROUP on.
    """
    row, group = tl.program_id(0), tl.program_id(1)
    position, lane = tl.arange(0, POSITIONS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = (position < positions) & (lane < GROUP)
    channel = group * GROUP + lane
    at = (row.to(tl.int64) * positions + position) * channels + channel
    values = tl.load(x + at, mask=inside, other=0.0)
    count = positions * GROUP
    mean = tl.sum(tl.sum(values, axis=1), axis=0) / count
    centred = tl.where(inside, values - mean, 0.0)
    variance = tl.sum(tl.sum(centred * centred, axis=1), axis=0) / count
    y = centred * (1.0 / tl.sqrt(variance + eps))
    if AFFINE:
        y = y * tl.load(weight + channel, mask=lane < GROUP) + tl.load(bias + channel, mask=lane < GROUP)
    if MODULATED:
        scale = modulation + row.to(tl.int64) * stride + channel
        y = y * (1.0 + tl.load(scale, mask=lane < GROUP)) + tl.load(scale + channels, mask=lane < GROUP)
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out + at, y, mask=inside)


def normal(seed: Tensor, index: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`noise.normal` in one kernel."""
    size = math.prod(shape)
    out = torch.empty(len(seed), *shape, device=seed.device)
    grid = len(seed), triton.cdiv(size, 4 * NOISE_BLOCK)
    with _on(seed.device):
        normal_kernel[grid](seed.contiguous(), index.contiguous(), step.contiguous(), out, size, BLOCK=NOISE_BLOCK)
    return out


def group_norm(x: Tensor, norm: torch.nn.GroupNorm, modulation: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """`nets.group_norm` in one kernel, in channels-last memory format."""
    count, channels, height, width = x.shape
    group = channels // norm.num_groups
    block = triton.next_power_of_2(height * width), triton.next_power_of_2(group)
    if math.prod(block) > MAX_GROUP or (modulation is not None and modulation.stride(1) != 1):
        return nets.torch_group_norm(x, norm, modulation, silu=silu)
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    with _on(x.device):
        group_norm_kernel[count, norm.num_groups](
            x,
            x if norm.weight is None else norm.weight,
            x if norm.bias is None else norm.bias,
            x if modulation is None else modulation,
            out,
            height * width,
            channels,
            0 if modulation is None else modulation.stride(0),
            norm.eps,
            AFFINE=norm.affine,
            MODULATED=modulation is not None,
            SILU=silu,
            GROUP=group,
            POSITIONS=block[0],
            WIDTH=block[1],
            num_warps=8 if math.prod(block) > 2048 else 4,
        )
    return out


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one, on which Triton launches kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@torch.inference_mode()
def install(device: torch.device) -> None:
    """Let `kernels` name the kernels of this module that `device` runs as they should; log the others."""
    for name, kernel, prove in (("normal", normal, prove_normal), ("group_norm", group_norm, prove_group_norm)):
        reason = "it gives other numbers"
        try:
            proven = prove(device)
        except Exception as error:
            proven, reason = False, repr(error)
        if proven:
            setattr(kernels, name, kernel)
        else:
            log.warning("the fused kernel for %s is not used on %s: %s", name, device, reason)


def prove_normal(device: torch.device, count: int = 300) -> bool:
    """Whether `normal` gives the bits of `noise.normal` for `count` rows."""
    row = torch.arange(count, device=device)
    seed, index, step = row * (noise.MAX_SEED // count), row * 2**33 + row, row % 7
    return all(
        torch.equal(normal(seed, index, step, shape), noise.torch_normal(seed, index, step, shape))
        for shape in ((1, 28, 28), (3, 5), (2,))
    )


def prove_group_norm(device: torch.device, count: int = 33) -> bool:
    """Whether `group_norm` gives what torch gives, twice the same bits, and to the last of `count` rows those alone."""
    for channels, side, affine in ((32, 14, True), (64, 7, False)):
        norm = torch.nn.GroupNorm(8, channels, affine=affine, device=device)
        x, modulation = _values(count, channels, side, side, device=device), _values(count, 2 * channels, device=device)
        for rows in ((x,), (x, modulation)):
            result, expected = group_norm(rows[0], norm, *rows[1:]), nets.torch_group_norm(rows[0], norm, *rows[1:])
            alone = [part[-1:] for part in rows]
            if (
                not (result - expected).abs().max() < TOLERANCE
                or not torch.equal(group_norm(rows[0], norm, *rows[1:]), result)
                or not torch.equal(group_norm(alone[0], norm, *alone[1:]), result[-1:])
            ):
                return False
    return True


def _values(*shape: int, device: torch.device) -> Tensor:
    """Different numbers between -2 and 4."""
    return (torch.arange(math.prod(shape), device=device) * 0.7).sin().mul(3).add(1).reshape(shape)
