"""Runs that start from other weights."""

import json

import pytest
import torch

from models import families, store
from models.store import TENSORS
from tests.conftest import manifest_of, small
from training import checkpoint
from training.cli import main
from training.export import export
from training.samples import fixed_samples
from training.start import copy_weights

TINY = ["--data", "digits", "--device", "cpu", "--width", "8", "--batch", "32", "--every", "200"]
DIGITS = (1, 8, 8)


@pytest.fixture(autouse=True)
def _few_validation_samples(monkeypatch):
    monkeypatch.setattr("training.loop.fixed_samples", lambda *args, **options: fixed_samples(*args, 64, **options))


@pytest.fixture
def flow(tmp_path):
    """The directory of weights of a small flow on digits."""
    kind = families.get("flow")
    torch.manual_seed(1)
    family = kind(kind.Config(width=8), DIGITS).for_sampling()
    store.save(tmp_path / "flow", family, manifest_of(family), b"")
    return tmp_path / "flow"


def fit(run, *flags):
    return main(["fit", "meanflow", "--run", str(run), *TINY, *flags])


def test_a_run_starts_from_the_weights_and_its_manifest_names_them(flow, tmp_path):
    assert fit(tmp_path / "run", "--start", str(flow), "--fixed-velocity", "--epochs", "0.1") == 0
    manifest = store.read_manifest(flow)
    start = {"family": "flow", "digest": manifest.digest}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["start"] == start
    trained = checkpoint.load(tmp_path / "run" / "latest.pt")["family"]
    for key, value in store.load(flow)[0].unet.state_dict().items():
        assert torch.equal(trained[f"velocity.{key}"], value), "fixed"
    assert export(tmp_path / "run", tmp_path / "exported", "latest", {}, None).training["start"] == start
    assert [name for name, _ in store.load(tmp_path / "exported")[0].named_children()] == ["unet"]


def test_later_weights_replace_those_of_earlier_ones(flow, tmp_path):
    assert fit(tmp_path / "first", "--start", str(flow), "--fixed-velocity", "--epochs", "0.1") == 0
    first = tmp_path / "weights"
    digest = export(tmp_path / "first", first, "latest", {}, None).digest
    flags = ["--fixed-velocity", "--game", "0.5", "--epochs", "0.02"]
    assert fit(tmp_path / "second", "--start", str(flow), str(first), *flags) == 0
    trained = checkpoint.load(tmp_path / "second" / "latest.pt")["family"]
    for key, value in store.load(flow)[0].unet.state_dict().items():
        assert torch.equal(trained[f"velocity.{key}"], value), "those of flow, which the later weights lack"
    start = json.loads((tmp_path / "second" / "config.json").read_text())["start"]
    assert start == {
        "family": "meanflow",
        "digest": digest,
        "after": [{"family": "flow", "digest": store.read_manifest(flow).digest}],
    }


def test_weights_of_the_same_family_fit_by_their_names(flow, tmp_path):
    assert fit(tmp_path / "run", "--start", str(flow), "--fixed-velocity", "--epochs", "0.1") == 0
    export(tmp_path / "run", tmp_path / "weights", "latest", {}, None)
    family = families.get("meanflow")(families.get("meanflow").Config(width=8), DIGITS)
    velocity = {key: value.clone() for key, value in family.velocity.state_dict().items()}
    source, manifest = store.load(tmp_path / "weights")
    copy_weights(family, source, manifest, manifest.classes)
    assert all(torch.equal(family.unet.state_dict()[key], value) for key, value in source.unet.state_dict().items())
    assert all(torch.equal(family.velocity.state_dict()[key], value) for key, value in velocity.items())


def test_a_resumed_run_equals_an_uninterrupted_run_to_the_bit(flow, tmp_path, monkeypatch):
    flags = ["--start", str(flow), "--epochs", "0.2"]
    assert fit(tmp_path / "straight", *flags) == 0
    with monkeypatch.context() as patch:
        reasons = iter([None, "enough"])
        patch.setattr("training.fitting.stop_reason", lambda *_: lambda: next(reasons))
        assert fit(tmp_path / "split", *flags) != 0
    assert fit(tmp_path / "split", *flags) == 0
    straight, split = (checkpoint.load(tmp_path / name / "latest.pt") for name in ("straight", "split"))
    for part in ("family", "average"):
        for key, value in straight[part].items():
            assert torch.equal(split[part][key], value), key


def test_a_run_does_not_continue_from_another_start(flow, tmp_path, capsys):
    assert fit(tmp_path / "run", "--start", str(flow), "--epochs", "0.05") == 0
    assert fit(tmp_path / "run", "--epochs", "0.05") == 2
    assert "start.digest: started with" in capsys.readouterr().err


def test_a_tensor_with_more_inputs_keeps_its_initial_numbers_for_those(flow):
    family = families.get("meanflow")(families.get("meanflow").Config(width=8), DIGITS)
    initial = family.unet.label.weight.clone()
    source, manifest = store.load(flow)
    copy_weights(family, source, manifest, manifest.classes)
    assert torch.equal(family.unet.label.weight[:, :10], source.unet.label.weight)
    assert torch.equal(family.unet.label.weight[:, 10:], initial[:, 10:])


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("flow", (1, 12, 12), 10, "other classes: 1x12x12, 10 classes; this run has 1x8x8, 10 classes"),
        ("flow", DIGITS, 3, "other classes: 1x8x8, 3 classes; this run has 1x8x8, 10 classes"),
        ("flow", DIGITS, 10, "--start: unet.frequencies of the weights of flow does not fit into meanflow"),
        ("ddpm", DIGITS, 10, "--start: unet.frequencies of the weights of ddpm does not fit into meanflow"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, shape, classes, message, tmp_path, capsys):
    family = small(name, shape, classes).for_sampling()
    store.save(tmp_path / "w", family, manifest_of(family, tuple("0123456789"[:classes])), b"")
    assert fit(tmp_path / "run", "--start", str(tmp_path / "w")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_weights_that_are_missing_or_damaged_are_refused(flow, tmp_path, capsys):
    assert fit(tmp_path / "run", "--start", str(tmp_path / "nothing")) == 2
    assert "nothing has no manifest.json" in capsys.readouterr().err
    (flow / TENSORS).write_bytes(b"damaged")
    assert fit(tmp_path / "run", "--start", str(flow)) == 2
    assert "damaged or from another export" in capsys.readouterr().err


def test_families_without_gradient_training_have_no_start(tmp_path, capsys):
    assert main(["fit", "pca", "--run", str(tmp_path / "run"), "--data", "digits", "--start", "weights/flow"]) == 2
    assert "--start" in capsys.readouterr().err
