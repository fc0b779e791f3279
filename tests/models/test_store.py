"""Weights on disk are complete and match their manifest, or they are refused."""

import hashlib
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


def test_a_saved_directory_is_listed_and_complete(saved):
    assert store.list_weights(saved.parent) == ["gan"]
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "model.safetensors", "samples.png"]


def test_saving_again_replaces_the_directory_and_leaves_no_other(saved):
    family = small("gan").for_sampling()
    torch.nn.init.zeros_(next(family.parameters()))
    old = store.read_manifest(saved).digest
    new = store.save(saved, family, manifest_of(family), b"other").digest
    assert new != old
    assert store.load(saved)[1].digest == new
    assert [path.name for path in saved.parent.iterdir()] == ["gan"]


@pytest.mark.skipif(sys.platform != "linux", reason="the swap is atomic on Linux only")
def test_a_replaced_directory_exists_at_every_moment(saved):
    family = small("gan").for_sampling()
    script = """
import sys, os
name = sys.argv[1]
print("started", flush=True)
missing = 0
while os.path.exists(os.path.dirname(name) + "/running"):
    missing += not os.path.exists(name)
print(missing)
"""
    (saved.parent / "running").touch()
    with subprocess.Popen([sys.executable, "-c", script, str(saved)], stdout=subprocess.PIPE, text=True) as poller:
        poller.stdout.readline()
        for _ in range(200):
            store.save(saved, family, manifest_of(family), b"other")
        (saved.parent / "running").unlink()
        assert int(poller.stdout.read()) == 0


def test_a_failed_write_keeps_the_old_bytes_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "file"
    store.write_atomic(path, b"old")
    script = (
        "import pathlib, resource, signal, sys; from models import store;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "store.write_atomic(pathlib.Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"old"}


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
    ("change", "message"),
    [
        ({"family": "nope"}, "unknown family 'nope'"),
        ({"config": {"latent": 7}}, "does not match its manifest"),
        ({"config": {"wrong": 1}}, "does not match its manifest"),
        ({"config": {}}, "describes other nets"),
        ({"revision": 0}, "made for revision 0 of gan, this is 1"),
        ({"classes": ["a"]}, "describes other nets"),
        ({"surprise": 1}, "is not a valid manifest"),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(saved, change, message):
    path = saved / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError, match=message):
        store.load(saved)


def test_a_pickle_instead_of_the_tensors_is_refused(saved):
    pickled = saved / store.TENSORS
    torch.save({"x": torch.zeros(1)}, pickled)
    manifest = json.loads((saved / store.MANIFEST).read_text())
    manifest["digest"] = hashlib.sha256(pickled.read_bytes()).hexdigest()
    (saved / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="does not match"):
        store.load(saved)


def test_annotate_replaces_metrics_and_keeps_the_digest(saved):
    before = store.read_manifest(saved)
    store.annotate(saved, metrics={"fd": 1.0}, caveat="blurred")
    after = store.annotate(saved, metrics={"kid": 2.0})
    assert (after.metrics, after.caveat) == ({"kid": 2.0}, "blurred")
    assert after.digest == before.digest
    store.load(saved)


def test_the_file_contains_only_what_sampling_needs(saved):
    names = safetensors.torch.load_file(saved / store.TENSORS).keys()
    assert {name.partition(".")[0] for name in names} == {"generator"}
