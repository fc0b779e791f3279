"""What a step of diffusion or flow computes after its nets: guidance, and the sampler's next state.

On a CUDA GPU each function is one kernel, if `models/fused.py` could prove it there.
"""

import torch
from torch import Tensor

from models import kernels
from models.base import coefficient_columns


def guide(labelled: Tensor, unlabelled: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance: unlabelled + scale (labelled - unlabelled), for predictions [B, ...] and scale [B].

    Equation 6 of Ho & Salimans 2022 with scale = 1 + w. A row with scale 1 gets exactly `labelled`.
    """
    return kernels.choose(torch_guide, labelled)(labelled, unlabelled, scale)


def diffuse(state: Tensor, x_0: Tensor, coefficients: Tensor, eps: Tensor | None) -> Tensor:
    """The next state of a sampler of diffusion, the pair (x, previous x_0) like `state` [B, 2 C, ...].

    x_0 [B, C, ...] is the prediction, which is clamped to [-1, 1], and eps fresh noise of the same shape. coefficients
    [B, 5] are the factors of x, x_0, the previous x_0 and eps in the next x, and that of x_0 in the memory.
    """
    return kernels.choose(torch_diffuse, state)(state, x_0, coefficients, eps)


def flow(state: Tensor, predicted: Tensor, coefficients: Tensor) -> Tensor:
    """The next state of a sampler of flow, the pair (x, memory) like `state` [B, 2 C, ...].

    predicted [B, C, ...] is the image, which is clamped to [-1, 1]. coefficients [B, 4] are time, the step size of x,
    whether to continue from x (1) or from the memory (0), and the step size of the memory.
    """
    return kernels.choose(torch_flow, state)(state, predicted, coefficients)


def torch_guide(labelled: Tensor, unlabelled: Tensor, scale: Tensor) -> Tensor:
    """`guide` by operations of torch."""
    scale = scale.view(-1, *[1] * (labelled.dim() - 1))
    return torch.where(scale == 1, labelled, unlabelled + scale * (labelled - unlabelled))


def torch_diffuse(state: Tensor, x_0: Tensor, coefficients: Tensor, eps: Tensor | None) -> Tensor:
    """`diffuse` by operations of torch."""
    to_x, to_x_0, to_previous, noise_std, memory = coefficient_columns(coefficients, state)
    x, previous_x_0 = state.chunk(2, dim=1)
    x_0 = x_0.clamp(-1, 1)
    following = to_x * x + to_x_0 * x_0 + to_previous * previous_x_0
    if eps is not None:
        following = following + noise_std * eps
    return torch.cat((following, memory * x_0), dim=1)


def torch_flow(state: Tensor, predicted: Tensor, coefficients: Tensor) -> Tensor:
    """`flow` by operations of torch."""
    time, state_step, from_state, memory_step = coefficient_columns(coefficients, state)
    x, memory = state.chunk(2, dim=1)
    velocity = (predicted.clamp(-1, 1) - x) / (1 - time)
    base = torch.lerp(memory, x, from_state)
    return torch.cat((base + state_step * velocity, base + memory_step * velocity), dim=1)
