"""Fused kernels for CUDA GPUs, in Triton: noise, group norm with modulation and SiLU, and what follows the nets.

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

from models import kernels, nets, noise, updates

log = logging.getLogger(__name__)

NOISE_BLOCK = 256
"""Blocks of four numbers per program."""
MAX_GROUP = 16_384
"""Numbers of a group that one program normalizes; larger ones are left to torch."""
BLOCK = 1024
"""Numbers per program of the kernels that compute each number from those at the same place."""
TOLERANCE = 1e-4
"""The largest difference from torch, whose sums have another order, and whose products are rounded before a sum."""


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


@triton.jit  # type: ignore[untyped-decorator]
def guide_kernel(labelled, unlabelled, scale, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0) of out [B, size]; see `updates.guide`."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, inside = row.to(tl.int64) * size + place, place < size
    with_label, without = tl.load(labelled + at, mask=inside), tl.load(unlabelled + at, mask=inside)
    factor = tl.load(scale + row)
    tl.store(out + at, tl.where(factor == 1.0, with_label, without + factor * (with_label - without)), mask=inside)


@triton.jit
def clamped(x):  # type: ignore[no-untyped-def]
    """x in [-1, 1]; not a number remains that."""
    return tl.where(x > 1.0, 1.0, tl.where(x < -1.0, -1.0, x))


@triton.jit  # type: ignore[untyped-decorator]
def diffuse_kernel(  # type: ignore[no-untyped-def]
    state, x_0, eps, coefficients, out, size, stride, NOISY: tl.constexpr, BLOCK: tl.constexpr
):
    """Row program_id(0) of state and out [B, 2 size], x_0 and eps [B, size]; see `updates.diffuse`."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, inside = row.to(tl.int64) * size + place, place < size
    pair, factor = row.to(tl.int64) * 2 * size + place, coefficients + row * stride
    predicted = clamped(tl.load(x_0 + at, mask=inside))
    following = tl.load(factor) * tl.load(state + pair, mask=inside) + tl.load(factor + 1) * predicted
    following += tl.load(factor + 2) * tl.load(state + pair + size, mask=inside)
    if NOISY:
        following += tl.load(factor + 3) * tl.load(eps + at, mask=inside)
    tl.store(out + pair, following, mask=inside)
    tl.store(out + pair + size, tl.load(factor + 4) * predicted, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def flow_kernel(state, predicted, coefficients, out, size, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row program_id(0) of state and out [B, 2 size] and predicted [B, size]; see `updates.flow`."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    pair, factor = row.to(tl.int64) * 2 * size + place, coefficients + row * stride
    x, memory = tl.load(state + pair, mask=inside), tl.load(state + pair + size, mask=inside)
    image = clamped(tl.load(predicted + row.to(tl.int64) * size + place, mask=inside))
    velocity = (image - x) / (1.0 - tl.load(factor))
    base = memory + tl.load(factor + 2) * (x - memory)
    tl.store(out + pair, base + tl.load(factor + 1) * velocity, mask=inside)
    tl.store(out + pair + size, base + tl.load(factor + 3) * velocity, mask=inside)


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


def guide(labelled: Tensor, unlabelled: Tensor, scale: Tensor) -> Tensor:
    """`updates.guide` in one kernel."""
    labelled, unlabelled = labelled.contiguous(), unlabelled.contiguous()
    out = torch.empty_like(labelled)
    with _on(out.device):
        guide_kernel[_grid(labelled)](labelled, unlabelled, scale.contiguous(), out, _size(labelled), BLOCK=BLOCK)
    return out


def diffuse(state: Tensor, x_0: Tensor, coefficients: Tensor, eps: Tensor | None) -> Tensor:
    """`updates.diffuse` in one kernel."""
    state, x_0 = state.contiguous(), x_0.contiguous()
    out = torch.empty_like(state)
    added, stride = x_0 if eps is None else eps.contiguous(), coefficients.stride(0)
    with _on(out.device):
        diffuse_kernel[_grid(x_0)](
            state, x_0, added, coefficients, out, _size(x_0), stride, NOISY=eps is not None, BLOCK=BLOCK
        )
    return out


def flow(state: Tensor, predicted: Tensor, coefficients: Tensor) -> Tensor:
    """`updates.flow` in one kernel."""
    state, predicted = state.contiguous(), predicted.contiguous()
    out, stride = torch.empty_like(state), coefficients.stride(0)
    with _on(out.device):
        flow_kernel[_grid(predicted)](state, predicted, coefficients, out, _size(predicted), stride, BLOCK=BLOCK)
    return out


def _size(x: Tensor) -> int:
    """The numbers in a row of x [B, ...]."""
    return x[0].numel()


def _grid(x: Tensor) -> tuple[int, int]:
    """A program for each BLOCK numbers of each row of x [B, ...]."""
    return len(x), triton.cdiv(_size(x), BLOCK)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one, on which Triton launches kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@torch.inference_mode()
def install(device: torch.device) -> None:
    """Let `kernels` use those of this module that `device` runs as they should; log the others."""
    for replaced, kernel, prove in (
        (noise.torch_normal, normal, prove_normal),
        (nets.torch_group_norm, group_norm, prove_group_norm),
        (updates.torch_guide, guide, prove_guide),
        (updates.torch_diffuse, diffuse, prove_diffuse),
        (updates.torch_flow, flow, prove_flow),
    ):
        reason = "it gives other numbers"
        try:
            proven = prove(device)
        except Exception as error:
            proven, reason = False, repr(error)
        if proven:
            kernels.installed[replaced] = kernel
        else:
            log.warning("the fused kernel for %s is not used on %s: %s", kernel.__name__, device, reason)


def prove_normal(device: torch.device, count: int = 300) -> bool:
    """Whether `normal` gives the bits of `noise.normal` for `count` rows."""
    row = torch.arange(count, device=device)
    seed, index, step = row * (noise.MAX_SEED // count), row * 2**33 + row, row % 7
    return all(
        torch.equal(normal(seed, index, step, shape), noise.torch_normal(seed, index, step, shape))
        for shape in ((1, 28, 28), (3, 5), (2,))
    )


def prove_group_norm(device: torch.device, count: int = 33) -> bool:
    """Whether `group_norm` agrees with torch for `count` rows, with and without modulation and parameters."""
    for channels, side, affine in ((32, 14, True), (64, 7, False)):
        norm = torch.nn.GroupNorm(8, channels, affine=affine, device=device).requires_grad_(False)
        for parameter in norm.parameters():
            parameter.copy_(_values(channels, device=device))
        x, modulation = _values(count, channels, side, side, device=device), _values(count, 2 * channels, device=device)

        def fused_norm(x: Tensor, *modulation: Tensor, norm: torch.nn.GroupNorm = norm) -> Tensor:
            return group_norm(x, norm, *modulation)

        def torch_norm(x: Tensor, *modulation: Tensor, norm: torch.nn.GroupNorm = norm) -> Tensor:
            return nets.torch_group_norm(x, norm, *modulation)

        if not (_agree(fused_norm, torch_norm, x) and _agree(fused_norm, torch_norm, x, modulation)):
            return False
    return True


def prove_guide(device: torch.device, count: int = 33) -> bool:
    """Whether `guide` agrees with torch for `count` rows, some of them with scale 1."""
    scale = torch.arange(count, device=device) % 3 / 2
    labelled, unlabelled = _values(2, count, 3, 28, 28, device=device)
    return _agree(guide, updates.torch_guide, labelled, unlabelled.cos(), scale)


def prove_diffuse(device: torch.device, count: int = 33) -> bool:
    """Whether `diffuse` agrees with torch for `count` rows, with noise and without."""
    state, x_0, eps = (_values(count, planes, 28, 28, device=device) for planes in (2, 1, 1))
    coefficients = _values(count, 8, device=device)[:, 3:]
    return all(
        _agree(diffuse, updates.torch_diffuse, state, x_0.cos() * 2, coefficients, added) for added in (None, eps.sin())
    )


def prove_flow(device: torch.device, count: int = 33) -> bool:
    """Whether `flow` agrees with torch for `count` rows, some of which continue from the memory."""
    row = torch.arange(count, device=device)
    time, size, whole = row % 8 / 8, 1 / (row + 1), (row % 2).float()
    coefficients = torch.stack((time, size, whole, size / 2), dim=1)
    state, predicted = _values(count, 6, 9, 9, device=device), _values(count, 3, 9, 9, device=device)
    return _agree(flow, updates.torch_flow, state, predicted, coefficients)


def _agree(kernel: kernels.Kernel, reference: kernels.Kernel, *rows: Tensor | None) -> bool:
    """Whether `kernel` gives what `reference` gives, twice the same bits, and to the last row alone the same bits."""
    result = kernel(*rows)
    return (
        bool((result - reference(*rows)).abs().max() < TOLERANCE)
        and torch.equal(kernel(*rows), result)
        and torch.equal(kernel(*(part if part is None else part[-1:] for part in rows)), result[-1:])
    )


def _values(*shape: int, device: torch.device) -> Tensor:
    """Different numbers between -2 and 4."""
    return (torch.arange(math.prod(shape), device=device) * 0.7).sin().mul(3).add(1).reshape(shape)
