"""What every server of a comparison does with a batch: the same weights, the same nets, PNGs."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from models import batch_invariant, memory, store
from models.base import Family, sample
from models.nets import fold_norms
from models.pixels import to_uint8
from service.codecs.png import png

WEIGHTS = Path(__file__).parent.parent / "weights"
ImageRequest = tuple[str, int, int]
"""Model, seed and steps of one image."""


@cache
def model(name: str) -> Family:
    """The committed weights called `name`, on one CPU thread."""
    torch.set_num_threads(1)
    family, _ = store.load(WEIGHTS / name)
    fold_norms(family)
    return family


def prepared_model(name: str) -> Family:
    """`model(name)`, with all that this service does to it on a CPU besides, and to the process."""
    memory.retain_freed_memory()
    batch_invariant.prepack_weights(model(name))
    return model(name)


@torch.inference_mode()
def generate_pngs(asked: Sequence[ImageRequest]) -> list[bytes]:
    """A PNG for each, drawn together where model and steps agree."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, (name, _, steps) in enumerate(asked):
        groups[name, steps].append(i)
    found: dict[int, bytes] = {}
    for (name, steps), members in groups.items():
        family = model(name)
        seed = torch.tensor([asked[i][1] for i in members])
        label = torch.zeros(len(members), family.classes)
        images = to_uint8(sample(family, seed, torch.zeros_like(seed), label, steps=steps))[:, 0].numpy()
        found |= {i: png(image) for i, image in zip(members, images, strict=True)}
    return [found[i] for i in range(len(asked))]


def warm_up() -> None:
    """What a first call costs, before the first call."""
    for size in (1, 8, 32):
        generate_pngs([("dcgan", i, 1) for i in range(size)] + [("ddpm", i, 2) for i in range(size)])
