"""`drawbridge dataset --keep` and `--no-copies`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drawbridge.cli import main
from drawbridge.client import Client
from drawbridge.dataset import parts as parts_module
from drawbridge.dataset.parts import IMAGES_PER_CLASS
from harness.server import Server
from models import store
from models.pixels import to_unit
from tests.conftest import WEIGHTS, manifest_of, small
from tests.serving import serving
from training import classifier, data

LABELS = 3
DRAWN = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with training data, in which every third image nearly equals a draw, and weights of that data."""
    root = tmp_path_factory.mktemp("filtered")
    family = small("cgan", (1, 28, 28), LABELS).for_sampling()
    manifest = manifest_of(family, ("a", "b", "c"))
    store.save(root / "first" / "drawings", family, manifest, b"")
    with serving(root / "first") as running, Client(running.url) as client:
        draws = [
            client.generate("drawings", label=name, n=30, seed=0, first=label * IMAGES_PER_CLASS).arrays
            for label, name in enumerate("abc")
        ]
    train = np.concatenate([of_class[::3] for of_class in draws])
    test = np.where(train < 255, train + 1, train)
    np.savez(
        root / "data.npz", x_train=train, y_train=np.arange(30) // 10, x_test=test, y_test=np.arange(30) // 10,
        classes=np.array(["a", "b", "c"]),
    )  # fmt: skip
    loaded = data.load(str(root / "data.npz"))
    described = {"name": str(root / "data.npz"), "digest": loaded.digest}
    store.save(root / "weights" / "drawings", family, dataclasses.replace(manifest, dataset=described), b"")
    torch.manual_seed(0)
    net = classifier.CNN(16, (1, 28, 28), LABELS).eval()
    torch.nn.init.normal_(net.head.weight, std=20.0)  # so that it is confident, at random
    facts = {"test_accuracy": 0.5, "recipe": {"width": 16}}
    classifier.write(root / "judges" / "data" / "select", net, loaded, facts)
    return root
