"""What several parts of the tests stand on."""

import dataclasses
import fcntl
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  its BLAS is another than NumPy's
import torch
from threadpoolctl import threadpool_limits

from models import families, store
from models.base import Family
from models.store import Manifest
from tests import serving

# Of several threads on as many cores as there are processes, one waits for the other. What tests start has its own.
torch.set_num_threads(1)
threadpool_limits(1)
# That of trio, which selenium brings, warns; nothing here needs any.
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"

SMALL: dict[str, dict[str, Any]] = {
    "pca": {"code": 8},
    "kde": {"code": 8, "points": 200},
    "gmm": {"code": 8, "most": 2},
    "acgan": {"generator_width": 8, "discriminator_width": 8},
    "cgan": {"generator_width": 8, "discriminator_width": 8},
    "dcgan": {"generator_width": 8, "discriminator_width": 8},
    "wgan_gp": {"generator_width": 8, "critic_width": 8},
    "flow": {"width": 16},
    "ae": {"width": 8},
    "swae": {"width": 8},
    "supervised_ae": {"width": 8, "most": 2},
    "vae": {"width": 8},
    "ddpm": {"width": 16},
}
"""Settings that make a family quick; one that is not named here is tested as it is."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked `alone` has the machine for itself: other processes of tests wait for its end."""
    alone = item.get_closest_marker("alone") is not None
    with Path(__file__).open() as room, Path(serving.__file__).open() as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # so that whoever waits for all others to end is the next
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a forked process may have it open, too


def small(name: str, data_shape: tuple[int, ...] = (1, 28, 28)) -> Family:
    """An untrained small instance of the family."""
    torch.manual_seed(0)
    kind = families.get(name)
    settings = dict(SMALL.get(name, {}))
    if "code" in settings:
        settings["code"] = min(settings["code"], math.prod(data_shape))
    family = kind(kind.Config(**settings), data_shape)
    # Layers that start at zero would hide half of what a family does.
    for parameter in family.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    family.fit(torch.rand(300, *data_shape) * 2 - 1, torch.arange(300) % 10)
    return family


def manifest_of(family: Family) -> Manifest:
    """A manifest that tells the truth about the nets and little else."""
    return Manifest(
        family=family.name,
        revision=family.revision,
        config=dataclasses.asdict(family.config),
        data_shape=family.data_shape,
        classes=tuple("0123456789") if family.classes else (),
        defaults={},
        dataset={"name": "none"},
        training={},
        versions={},
        commit="",
        created="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with small untrained weights of every family, under the family's name."""
    root = tmp_path_factory.mktemp("weights")
    for name in families.names():
        family = small(name).for_sampling()
        store.save(root / name, family, manifest_of(family), b"")
    return root


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Where MNIST lies; skips where there is none."""
    root = Path(os.environ.get("DRAWBRIDGE_DATA", "data"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST under {root}; set DRAWBRIDGE_DATA to a directory that has it")
    return root
