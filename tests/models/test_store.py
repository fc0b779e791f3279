"""Weights are whole, are what their manifest says, or are refused."""

import json

import pytest
import safetensors.torch
import torch

from models import store
from models.store import WeightsError
from tests.conftest import manifest_of, small


@pytest.fixture
def saved(tmp_path):
    family = small("gan").for_sampling()
    store.save(tmp_path / "gan", family, manifest_of(family), b"picture")
    return tmp_path / "gan"


def test_a_saved_directory_is_listed_and_whole(saved):
    assert store.listing(saved.parent) == ["gan"]
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "model.safetensors", "samples.png"]


def test_saving_again_replaces_and_leaves_nothing_behind(saved):
    family = small("gan").for_sampling()
    torch.nn.init.zeros_(next(family.parameters()))
    old = store.read_manifest(saved).digest
    new = store.save(saved, family, manifest_of(family), b"other").digest
    assert new != old
    assert store.load(saved)[1].digest == new
    assert [path.name for path in saved.parent.iterdir()] == ["gan"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_tensors_are_refused(saved, damage):
    path = saved / store.TENSORS
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    path.write_bytes({"flip": data, "truncate": data[:-100], "empty": b""}[damage])
    with pytest.raises(WeightsError, match="SHA-256"):
        store.load(saved)


def test_a_missing_file_is_named(saved):
    (saved / store.TENSORS).unlink()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        store.load(saved)
    (saved / store.MANIFEST).unlink()
    with pytest.raises(WeightsError, match=r"has no manifest\.json"):
        store.load(saved)
    assert store.listing(saved.parent) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"family": "nope"}, "no family is called 'nope'"),
        ({"config": {"latent": 7}}, "does not fit its manifest"),
        ({"config": {"wrong": 1}}, "does not fit its manifest"),
        ({"config": {}}, "its config lacks .*latent.*; export it again"),
        ({"revision": 0}, "made for revision 0 of gan, this is 1"),
        ({"classes": ["a"]}, "describes other nets"),
        ({"surprise": 1}, "does not read as a manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(saved, change, complaint):
    path = saved / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError, match=complaint):
        store.load(saved)


def test_a_pickle_in_place_of_the_tensors_is_never_opened(saved):
    bomb = saved / store.TENSORS
    torch.save({"x": torch.zeros(1)}, bomb)
    import hashlib

    manifest = json.loads((saved / store.MANIFEST).read_text())
    manifest["digest"] = hashlib.sha256(bomb.read_bytes()).hexdigest()
    (saved / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="does not fit"):
        store.load(saved)


def test_new_metrics_take_the_place_of_old_ones_and_the_digest_stays(saved):
    before = store.read_manifest(saved)
    store.annotate(saved, metrics={"fd": 1.0}, caveat="blurred")
    after = store.annotate(saved, metrics={"kid": 2.0})
    assert (after.metrics, after.caveat) == ({"kid": 2.0}, "blurred")
    assert after.digest == before.digest
    store.load(saved)


def test_only_what_sampling_needs_is_in_the_file(saved):
    names = safetensors.torch.load_file(saved / store.TENSORS).keys()
    assert {name.partition(".")[0] for name in names} == {"generator"}
