"""What is committed is whole, and draws what it says."""

from pathlib import Path

import pytest
import torch

from models import store
from training import judge, sources

ROOT = Path(__file__).parent.parent / "weights"
NAMES = store.listing(ROOT)
MNIST = "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c"


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_whole_and_tell_where_they_come_from(name):
    family, manifest = store.load(ROOT / name)
    assert (ROOT / name / store.SAMPLES).read_bytes().startswith(b"\x89PNG")
    assert manifest.dataset == {"name": "mnist", "digest": MNIST, "images": 60_000}
    assert manifest.training["images_seen"] >= 60_000
    assert manifest.training["device"] == "cpu"
    assert manifest.metrics["samples"] == 10_000
    assert manifest.metrics["judge"]["digest"] == judge.load("report").digest
    assert ("accuracy" in manifest.metrics) == bool(family.classes)


def test_all_weights_together_are_small_enough_to_clone():
    assert sum(path.stat().st_size for path in ROOT.rglob("*")) < 40e6


@pytest.mark.parametrize("name", [name for name in NAMES if store.read_manifest(ROOT / name).classes])
def test_the_digit_that_is_asked_for_is_drawn_as_often_as_the_manifest_says(name):
    family, manifest = store.load(ROOT / name)
    steps = {"steps": 10} if family.steps.minimum < 10 <= family.steps.maximum else {}
    drawn = sources.sample(family, manifest, seed=1, count=200, **steps)
    right = (judge.load("report").look(drawn.images)[1].argmax(1) == drawn.asked).double().mean()
    # Three deviations of a mean of 200.
    expected = manifest.metrics["accuracy"]
    assert float(right) > expected - 3 * (expected * (1 - expected) / 200) ** 0.5 - 0.02


def test_no_two_draws_are_the_same():
    for name in NAMES:
        family, manifest = store.load(ROOT / name)
        drawn = sources.sample(family, manifest, seed=2, count=50)
        assert len(torch.unique(drawn.images.flatten(1), dim=0)) == 50
