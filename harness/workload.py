"""The work that every server of a comparison does: the same weights, the same nets and the same PNG encoder."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch

from harness.weights import WEIGHTS
from models import memory, store
from models.base import Family, sample
from models.inference import prepare_for_cpu
from models.nets import fold_norms
from models.pixels import to_pixels
from service.codecs.png import png

DEVICE = torch.device(os.environ.get("WORKLOAD_DEVICE", "cpu"))
"""Where the models of this process are."""
ImageRequest = tuple[str, int, int]
"""Model, seed and steps of one image."""


@cache
def model(name: str) -> Family:
    """Load the committed weights called `name`. Torch then runs on one CPU thread."""
    torch.set_num_threads(1)
    family, _ = store.load(WEIGHTS / name)
    fold_norms(family)
    return family.to(DEVICE)


def prepared_model(name: str) -> Family:
    """Return `model(name)` with this service's own CPU optimisations: prepacked weights and retained memory."""
    memory.retain_freed_memory()
    prepare_for_cpu(model(name))
    return model(name)


@torch.inference_mode()
def generate_pngs(requests: Sequence[ImageRequest]) -> list[bytes]:
    """Generate a PNG for each request. Requests with the same model and steps share a batch."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, (name, _, steps) in enumerate(requests):
        groups[name, steps].append(i)
    pngs: dict[int, bytes] = {}
    for (name, steps), members in groups.items():
        family = model(name)
        seed = torch.tensor([requests[i][1] for i in members], device=DEVICE)
        label = torch.zeros(len(members), family.classes, device=DEVICE)
        images = to_pixels(sample(family, seed, torch.zeros_like(seed), label, steps=steps)).cpu().numpy()
        pngs |= {i: png(image) for i, image in zip(members, images, strict=True)}
    return [pngs[i] for i in range(len(requests))]


def warm_up() -> None:
    """Generate batches of several sizes, so that the first request does not pay for one-time work."""
    for size in (1, 8, 32):
        generate_pngs([("dcgan", i, 1) for i in range(size)] + [("ddpm", i, 2) for i in range(size)])
