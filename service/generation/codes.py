"""Engine requests from images to latent codes, and from codes to images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.catalog import Model
from service.engine.request import NO_LABEL, Request, Sample, StartState
from service.errors import InvalidParameter
from service.generation.labels import labels_of
from service.generation.parameters import Decode, Encode
from service.generation.plan import GenerationPlan


def plan_encoding(parameters: Encode, model: Model, images: Sequence[Tensor], *, codes_only: bool) -> Request:
    """Encode images [C, H, W]; decode the codes again unless `codes_only`. Raises InvalidParameter."""
    _check_encoder(model)
    if not images:
        raise InvalidParameter("image: send at least one image, as a form field called `image`")
    starts = [{"image": image} for image in images]
    return _inversion(model, parameters, starts, model.inversion_steps, codes_only=codes_only)


def plan_decoding(parameters: Decode, model: Model, max_images: int) -> Request:
    """Decode latent codes. Raises InvalidParameter."""
    _check_encoder(model)
    if len(parameters.codes) > max_images:
        raise InvalidParameter(f"codes: at most {max_images} per request")
    try:
        codes = torch.tensor(parameters.codes, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        codes = torch.empty(0)
    if codes.shape[1:] != model.code_shape or not bool(codes.isfinite().all()):
        raise InvalidParameter(f"codes: send a list of arrays of shape {list(model.code_shape)} with finite numbers")
    return _inversion(model, parameters, [{"code": code} for code in codes], 0)


def encode_endpoints(plan: GenerationPlan) -> Request:
    """The request that encodes the two uploads of an interpolation."""
    first = plan.request.samples[0]
    assert first.end is not None
    samples, steps = (Sample(first.start), Sample(first.end)), plan.model.inversion_steps
    return plan.request._replace(samples=samples, inversion_steps=steps, codes_only=True)


def with_endpoint_codes(plan: GenerationPlan, codes: NDArray[np.float32]) -> GenerationPlan:
    """The interpolation between the codes [2, *S] of its two uploads."""
    first = plan.request.samples[0]
    assert first.end is not None
    start, end = (
        state._replace(image=None, code=torch.from_numpy(code))
        for state, code in zip((first.start, first.end), codes, strict=True)
    )
    samples = tuple(sample._replace(start=start, end=end) for sample in plan.request.samples)
    return plan._replace(request=plan.request._replace(samples=samples))


def _check_encoder(model: Model) -> None:
    """Raises InvalidParameter if the model has no encoder."""
    if not model.family.encodes:
        raise InvalidParameter(f"model: {model.name} has no encoder; GET /models lists models with one (`encodes`)")


def _inversion(
    model: Model,
    parameters: Encode | Decode,
    starts: Sequence[dict[str, Tensor]],
    inversion_steps: int,
    *,
    codes_only: bool = False,
) -> Request:
    """Samples that start from images or codes, with the options that reconstruct an encoded image."""
    labels = labels_of(model, parameters) or [NO_LABEL]
    samples = tuple(Sample(StartState(0, i, labels[i % len(labels)], **start)) for i, start in enumerate(starts))
    options = {"steps": model.steps, "sampler": model.sampler, **model.family.inversion}
    return Request(model.key, samples, **options, inversion_steps=inversion_steps, codes_only=codes_only)
