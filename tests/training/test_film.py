"""Films: the frames that a run writes, and the film that an export or a command joins from them."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from models import film as films
from models import store
from models.film import FilmError
from training import checkpoint, film
from training.cli import main

TINY = {"gan": [], "ae": ["--width", "8"], "wgan_gp": ["--generator-width", "8", "--critic-width", "8"]}
HALF_EPOCH = ["--epochs", "0.5"]
"""Of 1,497 digits in batches of 32: 24 updates."""


def fit(family, run, *flags):
    return main(
        ["fit", family, "--run", str(run), "--data", "digits", "--device", "cpu", "--batch", "32", *TINY[family],
         *(flags or HALF_EPOCH)]
    )  # fmt: skip


def export(run, weights, *flags):
    return main(["export", str(run), "--name", "filmed", "--weights", str(weights), *flags])


def frames_of(run):
    return {int(path.stem): path.read_bytes() for path in sorted((run / "film").iterdir())}


def film_of(directory):
    return films.read(directory, store.read_manifest(directory).digest)


def frame_of(filmed, number):
    """The pixels of one frame."""
    sheet = np.asarray(Image.open(io.BytesIO(filmed.image)).convert("RGB"))
    top, left = number // filmed.across * filmed.height, number % filmed.across * filmed.width
    return sheet[top : top + filmed.height, left : left + filmed.width].astype(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the lecture's GAN over half an epoch."""
    path = tmp_path_factory.mktemp("runs") / "gan"
    assert fit("gan", path) == 0
    return path


def test_frames_are_evenly_spaced_in_the_logarithm_of_the_updates():
    due = [updates for updates in range(2001) if film.is_due(updates)]
    assert due == [0, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000, 2000]


@pytest.mark.parametrize("family", ["gan", "ae"])
def test_the_film_of_a_resumed_run_is_that_of_an_uninterrupted_one_to_the_byte(family, tmp_path, monkeypatch):
    assert fit(family, tmp_path / "straight") == 0
    remaining = iter(["", *[None] * 11, "enough"])
    with monkeypatch.context() as patch:
        patch.setattr("training.fitting.stop_reason", lambda *_: lambda: next(remaining) or None)
        assert fit(family, tmp_path / "split") != 0
    assert list(frames_of(tmp_path / "split")) == [0, 10]
    assert fit(family, tmp_path / "split") == 0
    frames = frames_of(tmp_path / "straight")
    assert list(frames) == [0, 10, 20]
    assert len(set(frames.values())) == 3
    assert frames_of(tmp_path / "split") == frames


@pytest.mark.parametrize("family", ["gan", "ae"])
def test_frames_change_nothing_in_the_run(family, tmp_path, monkeypatch):
    assert fit(family, tmp_path / "filmed") == 0
    monkeypatch.setattr("training.loop.draw_frame", lambda *_: None)
    assert fit(family, tmp_path / "plain") == 0
    filmed, plain = (checkpoint.load(tmp_path / name / "latest.pt") for name in ("filmed", "plain"))
    assert filmed["images"] == plain["images"]
    for part in ("family", "average"):
        assert all(torch.equal(filmed[part][name], tensor) for name, tensor in plain[part].items())
    assert torch.equal(filmed["random"]["cpu"], plain["random"]["cpu"])


def test_a_frame_estimates_its_closed_form_from_images_of_all_classes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(film, "FITTED", 7)
    monkeypatch.setattr("models.families.ae.Autoencoder.fit", lambda *arguments: seen.append(arguments[2].tolist()))
    monkeypatch.setattr("training.loop.validate", lambda *_: None)
    flags = ["--data", str(pictures(tmp_path / "pictures")), "--held-out", "0", "--epochs", "1", "--batch", "12"]
    assert main(["fit", "ae", "--run", str(tmp_path / "run"), "--device", "cpu", *flags]) == 0
    assert seen == [[0, 1, 2, 3, 4, 5]]


def test_an_iteration_of_several_batches_is_one_update(tmp_path):
    assert fit("wgan_gp", tmp_path / "run", "--epochs", "1.1") == 0
    assert list(frames_of(tmp_path / "run")) == [0, 10]
    assert checkpoint.load(tmp_path / "run" / "latest.pt")["images"] == 11 * 5 * 32
    assert export(tmp_path / "run", tmp_path) == 0
    assert film_of(tmp_path / "filmed").frames[1] == {"updates": 10, "images": 10 * 5 * 32}


def test_export_writes_the_film_with_the_weights_own_samples_at_its_end(run, tmp_path):
    assert export(run, tmp_path) == 0
    filmed = film_of(tmp_path / "filmed")
    assert filmed.same_run
    assert [frame["updates"] for frame in filmed.frames] == [0, 10, 20, 24]
    assert [frame["images"] for frame in filmed.frames] == [0, 320, 640, 768]
    assert (filmed.width, filmed.height, filmed.columns, filmed.rows) == (10 * 8, 4 * 8, 10, 4)
    with Image.open(tmp_path / "filmed" / "samples.png") as samples:
        own = np.asarray(samples.convert("RGB"))[: filmed.height].astype(int)
    errors = [np.abs(frame_of(filmed, number) - own).mean() for number in range(4)]
    assert np.argmin(errors) == 3
    with Image.open(run / "film" / "0000000010.png") as frame:
        drawn = np.asarray(frame.convert("RGB")).astype(int)
    errors = [np.abs(frame_of(filmed, number) - drawn).mean() for number in range(4)]
    assert np.argmin(errors) == 1
    assert errors[1] < 12  # of 255: the image is lossy


def test_the_film_does_not_change_the_weights_digest(run, tmp_path, monkeypatch):
    assert export(run, tmp_path / "with") == 0
    monkeypatch.setattr(film, "assemble", lambda *_, **__: None)
    assert export(run, tmp_path / "without") == 0
    one, other = (store.read_manifest(tmp_path / name / "filmed") for name in ("with", "without"))
    assert one.digest == other.digest
    assert sorted(path.name for path in (tmp_path / "without" / "filmed").iterdir()) == [
        "manifest.json", "model.safetensors", "samples.png",
    ]  # fmt: skip
    with pytest.raises(FilmError, match="filmed has no film"):
        film_of(tmp_path / "without" / "filmed")


def test_frames_after_the_exported_weights_are_left_out(run, tmp_path):
    assert export(run, tmp_path) == 0
    family, _ = store.load(tmp_path / "filmed")
    recipe = type(family).recipe
    early = film.assemble(run, family, recipe, 15 * recipe.batch, same_run=True)
    assert [frame["updates"] for frame in early.frames] == [0, 10, 15]


def test_a_film_of_many_tall_frames_has_several_in_a_row(run, tmp_path, monkeypatch):
    assert export(run, tmp_path / "one") == 0
    monkeypatch.setattr(film, "MAX_SIDE", 100)
    assert export(run, tmp_path / "two") == 0
    one, two = (film_of(tmp_path / name / "filmed") for name in ("one", "two"))
    assert (one.across, two.across) == (1, 2)
    for number in range(4):
        assert np.abs(frame_of(one, number) - frame_of(two, number)).mean() < 6


def test_the_film_of_a_colour_run_is_in_colour_and_has_a_column_per_class(tmp_path):
    flags = ["--data", str(pictures(tmp_path / "pictures")), "--epochs", "10", "--generator-width", "8"]
    assert main(["fit", "cgan", "--run", str(tmp_path / "run"), "--device", "cpu", "--batch", "12",
                 "--discriminator-width", "8", *flags]) == 0  # fmt: skip
    assert export(tmp_path / "run", tmp_path) == 0
    filmed = film_of(tmp_path / "filmed")
    assert (filmed.columns, filmed.width) == (6, 6 * 8)
    assert np.ptp(frame_of(filmed, len(filmed.frames) - 1), axis=2).max() > 20


def pictures(folder):
    """Six classes of two noisy colour pictures."""
    random = np.random.default_rng(0)
    for name in "abcdef":
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_film_writes_another_runs_film_beside_weights_of_the_same_recipe(run, tmp_path, capsys):
    assert fit("gan", tmp_path / "long", "--epochs", "0.7") == 0
    assert export(tmp_path / "long", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "filmed").iterdir()}
    assert main(["film", "filmed", "--weights", str(tmp_path), "--run", str(run)]) == 0
    assert "4 frames" in capsys.readouterr().out
    filmed = film_of(tmp_path / "filmed")
    assert not filmed.same_run
    assert [frame["updates"] for frame in filmed.frames] == [0, 10, 20, 33]
    after = {path.name: path.read_bytes() for path in (tmp_path / "filmed").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"film.json", "film.webp"}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--lr", "0.5"], "(recipe.lr: 0.5, not 0.0002)"),
        (["--latent", "7"], "(model.latent: 7, not 100)"),
        (["--size", "8x12"], "(images: "),
        (["--shift", "1"], "(augmentation: {'shift': 1}, not {})"),
    ],
)
def test_film_refuses_a_run_of_another_recipe(run, tmp_path, capsys, flags, problem):
    assert export(run, tmp_path) == 0
    assert fit("gan", tmp_path / "other", *HALF_EPOCH, *flags) == 0
    capsys.readouterr()
    before = (tmp_path / "filmed" / "film.json").read_bytes()
    assert main(["film", "filmed", "--weights", str(tmp_path), "--run", str(tmp_path / "other")]) == 2
    assert problem in capsys.readouterr().err
    assert (tmp_path / "filmed" / "film.json").read_bytes() == before


def test_film_says_what_it_lacks(run, weights, tmp_path, capsys):
    assert main(["film", "gan", "--weights", str(weights)]) == 2
    assert "name a --run" in capsys.readouterr().err
    assert main(["film", "gan", "--weights", str(weights), "--animation", str(tmp_path / "gan.webp")]) == 2
    assert "gan has no film" in capsys.readouterr().err
    assert main(["film", "nope", "--weights", str(weights), "--run", str(run)]) == 2
    assert "not a weights directory" in capsys.readouterr().err
    assert export(run, tmp_path) == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_bytes((run / "config.json").read_bytes())
    assert main(["film", "filmed", "--weights", str(tmp_path), "--run", str(tmp_path / "empty")]) == 2
    assert "has no frames" in capsys.readouterr().err


def test_an_animation_has_every_frame_and_shows_the_last_one_longer(run, tmp_path):
    assert export(run, tmp_path) == 0
    assert main(["film", "filmed", "--weights", str(tmp_path), "--animation", str(tmp_path / "film.webp")]) == 0
    with Image.open(tmp_path / "film.webp") as animation:
        assert (animation.n_frames, animation.size) == (4, (2 * 80, 2 * 32 + film.CAPTION))
        durations = []
        for number in range(4):
            animation.seek(number)
            animation.load()
            durations.append(animation.info["duration"])
    assert durations == [400, 400, 400, 2000]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("film.webp", b"RIFF"),
        ("film.json", b"{"),
        ("film.json", b"[]"),
        ("film.json", json.dumps({"weights": "", "image": "", "frames": [{"updates": 0}]}).encode()),
    ],
)
def test_a_damaged_film_is_an_error_of_the_film_alone(run, tmp_path, file, content):
    assert export(run, tmp_path) == 0
    (tmp_path / "filmed" / file).write_bytes(content)
    with pytest.raises(FilmError, match="is damaged"):
        film_of(tmp_path / "filmed")
    assert store.load(tmp_path / "filmed")[1].family == "gan"


def test_a_film_of_other_weights_is_not_shown(run, tmp_path):
    assert export(run, tmp_path) == 0
    with pytest.raises(FilmError, match="about other weights"):
        films.read(tmp_path / "filmed", "0" * 64)
