"""A run goes on where it stopped, to the bit, whatever stopped it."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import families, store
from training import checkpoint
from training.cli import main, parser, sampling_options
from training.config import ConfigError, check_sampling_options

ROOT = Path(__file__).parents[2]
TINY = {
    "acgan": ["--generator-width", "8", "--discriminator-width", "8", "--batch", "32"],
    "dcgan": ["--generator-width", "8", "--discriminator-width", "8", "--batch", "32"],
    "flow": ["--width", "8", "--batch", "32"],
    "gan": ["--batch", "32"],
    "wgan_gp": ["--generator-width", "8", "--critic-width", "8", "--batch", "32"],
    "cgan": ["--generator-width", "8", "--discriminator-width", "8", "--batch", "32"],
    "ae": ["--width", "8", "--batch", "32"],
    "swae": ["--width", "8", "--batch", "32"],
    "supervised_ae": ["--width", "8", "--batch", "32"],
    "vae": ["--width", "8", "--batch", "32"],
    "ddpm": ["--width", "8", "--batch", "32"],
}


def fit(family, run, *flags):
    return main(
        ["fit", family, "--run", str(run), "--data", "digits", "--device", "cpu", *TINY.get(family, []), *flags]
    )


def weights_of(run, which="latest"):
    return checkpoint.load(run / f"{which}.pt")


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(autouse=True)
def _signals():
    """`fit` takes the signals for itself; give them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class StopAfter:
    """Stands where the clock and the signals stand: stops a run after a number of iterations."""

    def __init__(self, iterations):
        self.left = iterations

    def __call__(self):
        self.left -= 1
        return "enough" if self.left == 0 else None


BY_GRADIENTS = [name for name in families.names() if families.get(name).recipe.epochs]
CLOSED_FORM = [name for name in families.names() if name not in BY_GRADIENTS]


@pytest.mark.parametrize("family", CLOSED_FORM)
def test_what_needs_no_gradients_is_fitted_at_once_and_once(family, tmp_path, capsys):
    assert fit(family, tmp_path / "run") == 0
    assert "done: 1497 images" in capsys.readouterr().out
    before = (tmp_path / "run" / "latest.pt").stat()
    assert fit(family, tmp_path / "run") == 0
    assert (tmp_path / "run" / "latest.pt").stat().st_mtime_ns == before.st_mtime_ns
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0
    _, manifest = store.load(tmp_path / "weights" / "run")
    assert manifest.training["images_seen"] == 1497


@pytest.mark.parametrize("family", BY_GRADIENTS)
def test_a_run_in_two_parts_is_the_straight_run_to_the_bit(family, tmp_path, monkeypatch):
    flags = ["--epochs", "0.25", "--every", "200"]
    assert fit(family, tmp_path / "straight", *flags) == 0
    monkeypatch.setattr("training.cli.stop_reason", lambda _: StopAfter(2))
    assert fit(family, tmp_path / "split", *flags) != 0
    middle = weights_of(tmp_path / "split")["images"]
    monkeypatch.undo()
    assert fit(family, tmp_path / "split", *flags) == 0
    straight, split = weights_of(tmp_path / "straight"), weights_of(tmp_path / "split")
    assert 0 < middle < straight["images"]
    assert_equal(straight["family"], split["family"])
    assert_equal(straight["average"], split["average"])
    assert straight["batches"] == split["batches"]
    assert straight["best"] == split["best"]
    assert torch.equal(straight["random"]["cpu"], split["random"]["cpu"])


def test_the_log_of_a_resumed_run_has_no_line_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("training.cli.stop_reason", lambda _: StopAfter(80))
    fit("gan", tmp_path / "run", "--epochs", "3")
    log = tmp_path / "run" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"images": 99999, "lost": 1}\n{"half a li')
    monkeypatch.undo()
    fit("gan", tmp_path / "run", "--epochs", "3")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    images = [line["images"] for line in lines if "sample_distance" not in line]
    assert len(images) >= 2
    assert images == sorted(set(images))
    assert not any("lost" in line for line in lines)


def test_a_run_shows_grids_scalars_and_both_checkpoints(tmp_path):
    fit("vae", tmp_path / "run", "--epochs", "0.5", "--every", "300")
    run = tmp_path / "run"
    grids = sorted(path.name for path in (run / "grids").iterdir())
    assert len(grids) == 3  # at 300, at 600, at the end
    assert all((run / "grids" / name).read_bytes().startswith(b"\x89PNG") for name in grids)
    assert list((run / "tensorboard").iterdir())
    scores = [json.loads(line).get("sample_distance") for line in (run / "log.jsonl").read_text().splitlines()]
    assert weights_of(run, "best")["best"] == min(score for score in scores if score is not None)


def test_each_player_learns_at_its_own_pace(tmp_path):
    fit("dcgan", tmp_path, "--epochs", "0.1", "--lr", "0.001", "--discriminator-pace", "4", "--no-cosine")
    optimizers = weights_of(tmp_path)["optimizers"]
    rates = {player: optimizer["param_groups"][0]["lr"] for player, optimizer in optimizers.items()}
    assert rates == {"discriminator": pytest.approx(0.004), "generator": pytest.approx(0.001)}


def test_a_strip_has_a_row_for_every_so_many_grids(tmp_path, capsys):
    fit("gan", tmp_path / "run", "--epochs", "1", "--every", "300")
    grids = len(list((tmp_path / "run" / "grids").iterdir()))
    assert grids == 5
    assert main(["strip", str(tmp_path / "run"), str(tmp_path / "strip.png"), "--every", "2"]) == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (280, 2 * 28)
    assert main(["strip", str(tmp_path / "run"), str(tmp_path / "none.png"), "--every", "9"]) == 2
    assert "let it train" in capsys.readouterr().err


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path, capsys):
    assert fit("gan", tmp_path / "run", "--epochs", "0.1") == 0
    assert fit("gan", tmp_path / "run", "--epochs", "0.1", "--lr", "0.5") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "recipe.lr: begun with 0.0002, now 0.5" in error


def test_a_run_of_an_older_revision_neither_goes_on_nor_is_exported(tmp_path, capsys):
    assert fit("pca", tmp_path / "run") == 0
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"revision": 1', '"revision": 0'))
    assert fit("pca", tmp_path / "run") == 2
    assert "revision: begun with 0, now 1" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path)]) == 2
    assert "trained an older revision of pca; begin a new run" in capsys.readouterr().err


def test_what_goes_wrong_is_written_into_the_manifest(weights, tmp_path, capsys):
    shutil.copytree(weights / "pca", tmp_path / "pca")
    assert main(["caveat", "pca", "Ghosts around strokes.", "--weights", str(tmp_path)]) == 0
    assert store.load(tmp_path / "pca")[1].caveat == "Ghosts around strokes."
    assert main(["caveat", "nope", "x", "--weights", str(tmp_path)]) == 2
    assert "not a weights directory" in capsys.readouterr().err


def test_a_checkpoint_of_other_nets_is_refused_in_one_line(tmp_path, capsys):
    assert fit("pca", tmp_path / "run") == 0
    state = weights_of(tmp_path / "run")
    state["family"]["components.basis"] = state["family"].pop("components.W")
    checkpoint.save(tmp_path / "run" / "latest.pt", state)
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "another version of pca" in error[-1]
    assert not (tmp_path / "weights" / "run").exists()


def test_settings_that_make_no_nets_leave_no_run_behind(tmp_path):
    assert main(["fit", "ddpm", "--data", "digits", "--width", "12", "--run", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_data(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.new("L", (28, 28), 5 * i).save(folder / f"{i}.png")
    command = ["fit", "gan", "--data", str(folder), "--batch", "8", "--device", "cpu", "--run", str(tmp_path / "run")]
    assert main([*command, "--epochs", "2"]) == 0
    for i in range(20):
        (folder / f"{i}.png").unlink()
    assert main([*command, "--epochs", "2"]) == 2
    assert "holds other images" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, 100_000])
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_once_there_is_room(limit, tmp_path):
    def go_on(limit):
        script = (
            "import resource, sys; from training.cli import main; limit = int(sys.argv.pop(1));"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); sys.exit(main())"
        )
        flags = ["--data", "digits", "--epochs", "0.2", "--batch", "32", "--threads", "1", "--device", "cpu"]
        command = [sys.executable, "-c", script, str(limit), "fit", "gan", "--run", str(tmp_path), *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    full = go_on(limit)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("error: File too large: ")
    assert "Traceback" not in full.stderr
    assert go_on(resource.RLIM_INFINITY).returncode == 0
    assert weights_of(tmp_path)["images"] >= 0.2 * 1497


def test_images_are_counted_as_often_as_they_are_seen(tmp_path):
    fit("wgan_gp", tmp_path / "run", "--epochs", "0.2", "--critic-steps", "3")
    state = weights_of(tmp_path / "run")
    drawn = state["batches"]["epoch"] * 1497 + state["batches"]["position"]
    assert state["images"] == drawn >= 0.2 * 1497
    assert drawn % 3 == 0


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_lower_precision_trains(precision, tmp_path):
    assert fit("vae", tmp_path / "run", "--epochs", "0.1", "--precision", precision) == 0
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run")["average"].values())


# Dynamo asks a tensor for a gradient that is not there, and means to silence what that says.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_training_agrees_with_plain_training(tmp_path):
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        assert fit("gan", tmp_path / name, "--epochs", "0.2", *flags) == 0
    plain, compiled = (weights_of(tmp_path / name)["family"] for name in ("plain", "compiled"))
    for name, value in plain.items():
        assert torch.allclose(value, compiled[name], atol=1e-3), name


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fit", "gan", "--data", "nowhere"], "no data set is called 'nowhere'"),
        (["fit", "cgan", "--data", "digits", "--compile"], "leave out --compile"),
        (["fit", "gan", "--data", "digits", "--device", "cuda"], "torch sees no GPU"),
        (["export", "/nowhere"], "is not a run"),
        (["evaluate"], "name the weights"),
        (["evaluate", "gan", "--write", "--steps", "3"], "as served"),
        (["evaluate", "gan", "--write", "--judge", "select"], "nothing was chosen by"),
        (["evaluate", "gan", "-n", "5"], "say nothing about a distribution"),
        (["fit", "nope"], "invalid choice: 'nope'"),
        (["fit", "gan", "--batch", "many"], "invalid int value"),
        (["fit", "gan", "--data", "digits", "--batch", "0"], "--batch"),
        (["fit", "ddpm", "--data", "digits", "--width", "12"], "these settings make no ddpm"),
        (["strip", "runs/x", "x.png", "--every", "0"], "--every"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, complaint, capsys, tmp_path, monkeypatch):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_every_field_of_a_config_is_a_flag(capsys):
    for name in families.names():
        with pytest.raises(SystemExit):
            main(["fit", name, "--help"])
        text = capsys.readouterr().out
        kind = families.get(name)
        for field in (*kind.Config.__dataclass_fields__, *kind.recipe.__dataclass_fields__):
            assert f"--{field.replace('_', '-')}" in text


def test_export_tells_where_the_weights_come_from(tmp_path):
    fit("ddpm", tmp_path / "run", "--epochs", "0.05")
    arguments = ["export", str(tmp_path / "run"), "--name", "mine", "--weights", str(tmp_path / "weights")]
    assert main([*arguments, "--steps", "7", "--guidance", "2.5"]) == 0
    family, manifest = store.load(tmp_path / "weights" / "mine")
    assert manifest.family == family.name == "ddpm"
    assert manifest.defaults == {"steps": 7, "sampler": "dpm++2m", "guidance": 2.5}
    assert manifest.training["images_seen"] >= 0.05 * manifest.dataset["images"]
    assert manifest.training["device"] == "cpu"
    assert manifest.classes == tuple("0123456789")
    assert (tmp_path / "weights" / "mine" / "samples.png").read_bytes().startswith(b"\x89PNG")
    state = weights_of(tmp_path / "run")["average"]
    assert_equal(dict(family.state_dict()), state)


@pytest.mark.parametrize(
    ("family", "flags", "complaint"),
    [
        ("ddpm", ["--steps", "0"], "--steps: ddpm takes 1 to 1000"),
        ("ddpm", ["--sampler", "euler"], "--sampler: ddpm has dpm++2m, ddim, ddpm"),
        ("ddpm", ["--guidance", "-1"], "--guidance: ddpm takes 0.0 to 10.0"),
        ("gan", ["--guidance", "2"], "--guidance: gan takes none"),
        ("gan", ["--sampler", "ddim"], "--sampler: gan has none"),
    ],
)
def test_what_a_family_cannot_be_asked_for_is_refused(family, flags, complaint):
    built = families.get(family)
    args = parser().parse_args(["export", "run", *flags])
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        check_sampling_options(built(built.Config()), sampling_options(args))


def test_signals_save_and_the_same_command_ends_with_the_unbroken_run_s_weights(tmp_path):
    def launch(run):
        flags = ["--data", "digits", "--epochs", "8", "--batch", "32", "--threads", "1", "--device", "cpu"]
        command = [sys.executable, "-m", "training", "fit", "gan", "--run", str(run), *flags]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def lines(run):
        log = run / "log.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    unbroken = launch(straight)
    images = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        process, before, end = launch(broken), lines(broken), time.monotonic() + 60
        while lines(broken) <= before and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "run the same command to go on" in out
        images.append(weights_of(broken)["images"])
    assert images == sorted(set(images))
    assert images[-1] < 8 * 1497
    for process in (unbroken, launch(broken)):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    assert_equal(weights_of(straight)["family"], weights_of(broken)["family"])
