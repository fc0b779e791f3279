"""The committed weights: complete, and consistent with their manifests. Each family's own test has its goals."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import families, film, store
from training import classifier, data, metrics, sources
from training.film import frame_png

ROOT = Path(__file__).parent.parent / "weights"
CPU = torch.device("cpu")
WORST = ROOT.parent / "docs" / "worst"
NAMES = store.list_weights(ROOT)
DATA = {
    "mnist": ("d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c", 60_000, 10_000),
    "emoji": ("917281ddd276c41512d5717d5d2d0329d82a010bd602d21532589acc83b2fba2", 3_227, 3_227),
}
"""Of each data set: the digest of the training images, their number, and the number of samples per seed."""


def data_of(name):
    """The name of the data set that weights were trained on."""
    return store.read_manifest(ROOT / name).dataset["name"]


def judge_of(manifest):
    """The committed classifier that measured these weights."""
    return classifier.read(classifier.find("report", manifest.dataset["digest"], Path("no-such-directory")))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_complete_and_their_manifest_names_their_origin(name):
    family, manifest = store.load(ROOT / name)
    digest, images, samples = DATA[manifest.dataset["name"]]
    assert (ROOT / name / store.SAMPLES).read_bytes().startswith(b"\x89PNG")
    assert (manifest.dataset["digest"], manifest.dataset["images"]) == (digest, images)
    assert manifest.training["images_seen"] >= images or "start" in manifest.training
    assert manifest.training.get("device_name", manifest.training["device"]) in ("cpu", "NVIDIA H100 80GB")
    assert manifest.metrics["samples"] == samples
    assert manifest.metrics["seeds"] == [0, 1, 2]
    assert manifest.metrics["judge"]["digest"] == judge_of(manifest).digest
    assert ("accuracy" in manifest.metrics) == bool(family.classes)


def test_the_default_models_are_of_digits():
    assert data_of("cgan") == data_of("dcgan") == "mnist"


@pytest.mark.parametrize("name", [name for name in NAMES if data_of(name) == "emoji"])
def test_weights_of_emoji_attribute_their_data_and_take_its_classes(name):
    manifest = store.read_manifest(ROOT / name)
    assert (manifest.data_shape, manifest.uploads) == ((3, 32, 32), "picture")
    assert manifest.classes[:3] == ("activities", "animals", "flags")
    assert "Noto Emoji" in manifest.attribution
    assert "Apache License 2.0" in manifest.attribution


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_a_caveat(name):
    assert store.read_manifest(ROOT / name).caveat


def test_pictures_of_the_worst_samples_are_those_of_committed_weights():
    paths = sorted(WORST.glob("*.png"))
    assert paths
    for path in paths:
        assert path.stem in NAMES
        with Image.open(path) as picture:
            height, width = store.read_manifest(ROOT / path.stem).data_shape[1:]
            assert picture.size == (10 * width, 3 * height)


def test_every_family_has_weights():
    assert {store.read_manifest(ROOT / name).family for name in NAMES} == set(families.names())


@pytest.mark.parametrize(
    "name", [name for name in NAMES if families.get(store.read_manifest(ROOT / name).family).encodes]
)
def test_encoded_images_are_reconstructed(name):
    # 0.01 is a tenth of a pixel's range. PCA with 64 numbers has about that error; the variance of an image is 0.07.
    assert store.read_manifest(ROOT / name).metrics["reconstruction_error"] < 0.015


def test_the_lecture_s_gan_was_trained_for_200_epochs_and_its_grids_are_committed():
    manifest = store.read_manifest(ROOT / "gan")
    assert manifest.training["images_seen"] == 200 * 60_000
    with Image.open(ROOT.parent / "docs" / "gan-epochs.png") as picture:
        assert picture.size == (10 * 28, 20 * 28)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if families.get(store.read_manifest(ROOT / name).family).recipe.epochs]
)
def test_weights_of_neural_families_have_a_film_that_ends_with_their_own_samples(name):
    family, manifest = store.load(ROOT / name)
    shown = film.read(ROOT / name, manifest.digest)
    assert shown.same_run == (name == "meanflow"), "the other weights are older than films"
    updates = [frame["updates"] for frame in shown.frames]
    assert updates[:7] == [0, 10, 20, 30, 50, 70, 100]
    assert updates == sorted(updates)
    assert shown.frames[-1]["images"] == manifest.training["images_seen"]
    height, width = manifest.data_shape[1:]
    assert (shown.width, shown.height) == ((len(manifest.classes) or 10) * width, 4 * height)
    with Image.open(io.BytesIO(shown.image)) as sheet, Image.open(io.BytesIO(frame_png(family, CPU))) as own:
        frames = np.asarray(sheet.convert("RGB")).astype(int).reshape(len(updates), shown.height, shown.width, 3)
        errors = np.abs(frames - np.asarray(own.convert("RGB"))).mean((1, 2, 3))
    # The film is lossy. In the run of the weights the frame before the last is of nearly the same weights.
    assert errors[-1] < errors[:-1].min() / (1 if shown.same_run else 2)


def test_all_films_together_are_small():
    assert 500_000 < sum(path.stat().st_size for path in ROOT.glob("*/film.*")) < 2_000_000


@pytest.mark.slow
def test_an_auto_encoder_s_samples_need_its_fitted_prior(mnist_root):
    family, manifest = store.load(ROOT / "ae")
    assert len(family.prior.mixture.weights) == 40
    report = classifier.load("report")
    real = report.features_and_logits(data.load("mnist", mnist_root, "test").images)[0]
    fitted, standard = (
        metrics.frechet_distance(
            real, report.features_and_logits(sources.sample_exported(family, manifest, 0, 500, sampler=prior).images)[0]
        )
        for prior in ("fitted", "standard")
    )
    assert standard > 4 * fitted


@pytest.mark.slow
def test_the_flow_s_samples_are_good_at_eight_steps():
    family, manifest = store.load(ROOT / "flow")
    assert manifest.defaults["steps"] == 8
    report = classifier.load("report")
    few, many = (
        report.features_and_logits(sources.sample_exported(family, manifest, 0, 200, steps=steps).images)
        for steps in (8, 32)
    )
    assert float((few[1].argmax(1) == torch.arange(200) % 10).double().mean()) > 0.95
    assert metrics.frechet_distance(few[0], many[0]) < 0.1


def test_the_vae_s_elbo_is_plausible():
    assert -110 < store.read_manifest(ROOT / "vae").metrics["test_elbo"] < -80


def test_all_weights_together_are_below_60_mb():
    assert sum(path.stat().st_size for path in ROOT.rglob("*")) < 60e6


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "steps" in manifest.defaults else ())
        for name in NAMES
        if (manifest := store.read_manifest(ROOT / name)).classes
    ],
)
def test_the_label_accuracy_agrees_with_the_manifest(name):
    family, manifest = store.load(ROOT / name)
    samples = sources.sample_exported(family, manifest, seed=1, count=200)
    predicted = judge_of(manifest).features_and_logits(samples.images)[1].argmax(1)
    accuracy = float((predicted == samples.requested_labels).double().mean())
    expected = manifest.metrics["accuracy"]
    # Three standard deviations of the mean of 200 samples.
    assert accuracy > expected - 3 * (expected * (1 - expected) / 200) ** 0.5 - 0.02


def test_all_samples_of_a_seed_differ():
    for name in NAMES:
        family, manifest = store.load(ROOT / name)
        samples = sources.sample_exported(family, manifest, seed=2, count=50)
        assert len(torch.unique(samples.images.flatten(1), dim=0)) == 50
