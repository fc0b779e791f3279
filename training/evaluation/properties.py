"""Figures of weights themselves rather than of samples."""

from typing import Any

import torch
from torch import Tensor

from models import store
from models.base import Family, invert, run_schedule
from models.pixels import to_uint8, to_unit
from models.store import Manifest
from training.cost import sampling_cost
from training.data import Dataset
from training.sources import BATCH

RECONSTRUCTED = 1000
"""Test images that are encoded and decoded."""


@torch.inference_mode()
def properties(family: Family, manifest: Manifest, test: Dataset, **options: Any) -> dict[str, Any]:
    """Figures of the weights themselves rather than of samples, those that the family has.

    `cost`: see `sampling_cost`. `test_elbo` or `code_log_density`: mean of `log_likelihood` over the test images, in
    nats. `reconstruction_error`: mean squared difference of pixels in [0, 1] over the first test images.
    """
    figures: dict[str, Any] = {"cost": sampling_cost(family, manifest, **options)}
    label = family.one_hot(test.labels)
    if family.likelihood:
        parts = zip(to_unit(test.images).split(500), label.split(500), strict=True)
        nats = torch.cat([family.log_likelihood(x, y) for x, y in parts])
        figures["test_elbo" if family.likelihood == "bound" else "code_log_density"] = float(nats.double().mean())
    if family.encodes:
        parts = zip(to_unit(test.images[:RECONSTRUCTED]).split(BATCH), label[:RECONSTRUCTED].split(BATCH), strict=True)
        errors = torch.cat([_reconstruction_errors(family, manifest, x, y) for x, y in parts])
        figures["reconstruction_error"] = float(errors.double().mean())
    return figures


def _reconstruction_errors(family: Family, manifest: Manifest, x: Tensor, label: Tensor) -> Tensor:
    """Mean squared difference between x [B, C, H, W] and its reconstruction: [B]."""
    options = {**store.defaults(family, manifest), **family.inversion}
    schedule = family.schedule(options["steps"], options["sampler"])
    zero = torch.zeros(len(x), dtype=torch.int64)
    back = run_schedule(family, invert(family, x, label), schedule, options["guidance"], zero, zero, label)
    return ((to_uint8(back).double() - to_uint8(x).double()) / 255).square().mean((1, 2, 3))
