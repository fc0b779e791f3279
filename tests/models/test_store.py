"""Weights are whole, are what their manifest says, or are refused."""

import json
import subprocess
import sys

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
    assert store.list_weights(saved.parent) == ["gan"]
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "model.safetensors", "samples.png"]


def test_saving_again_replaces_and_leaves_nothing_behind(saved):
    family = small("gan").for_sampling()
    torch.nn.init.zeros_(next(family.parameters()))
    old = store.read_manifest(saved).digest
    new = store.save(saved, family, manifest_of(family), b"other").digest
    assert new != old
    assert store.load(saved)[1].digest == new
    assert [path.name for path in saved.parent.iterdir()] == ["gan"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the old goes before the new comes")
def test_at_no_moment_is_there_neither_the_old_nor_the_new(saved):
    family = small("gan").for_sampling()
    look = """
import sys, os
name = sys.argv[1]
print("looking", flush=True)
missing = 0
while os.path.exists(os.path.dirname(name) + "/go"):
    missing += not os.path.exists(name)
print(missing)
"""
    (saved.parent / "go").touch()
    with subprocess.Popen([sys.executable, "-c", look, str(saved)], stdout=subprocess.PIPE, text=True) as looking:
        looking.stdout.readline()
        for _ in range(200):
            store.save(saved, family, manifest_of(family), b"other")
        (saved.parent / "go").unlink()
        assert int(looking.stdout.read()) == 0


def test_a_write_that_finds_no_room_leaves_the_old_bytes_and_takes_none(tmp_path):
    path = tmp_path / "file"
    store.write_atomic(path, b"old")
    script = (
        "import pathlib, resource, signal, sys; from models import store;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "store.write_atomic(pathlib.Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"file": b"old"}


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
    assert store.list_weights(saved.parent) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"family": "nope"}, "unknown family 'nope'"),
        ({"config": {"latent": 7}}, "does not match its manifest"),
        ({"config": {"wrong": 1}}, "does not match its manifest"),
        ({"config": {}}, "its config lacks .*latent.*; export it again"),
        ({"revision": 0}, "made for revision 0 of gan, this is 1"),
        ({"classes": ["a"]}, "describes other nets"),
        ({"surprise": 1}, "is not a valid manifest"),
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
    with pytest.raises(WeightsError, match="does not match"):
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
