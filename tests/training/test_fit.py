"""Training runs: resuming to the bit, configuration errors, checkpoints and export."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from PIL import Image

from drawbridge.cli import main as drawbridge_main
from harness.server import ROOT, environment
from models import families, store
from models.locks import locked
from tests.training.disk import file_size_limit
from training import checkpoint, data
from training.cli import main, parser, sampling_options
from training.config import ConfigError, check_sampling_options
from training.data import Options
from training.samples import fixed_samples

TINY = {
    "acgan": ["--generator-width", "8", "--discriminator-width", "8", "--batch", "32"],
    "dcgan": ["--generator-width", "8", "--discriminator-width", "8", "--batch", "32"],
    "flow": ["--width", "8", "--batch", "32"],
    "meanflow": ["--width", "8", "--batch", "32"],
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
def _signal_handlers():
    """Restore the signal handlers that `fit` replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def _few_validation_samples(monkeypatch):
    """Validate with 64 samples instead of 512, which slow samplers would spend most of the test on."""
    monkeypatch.setattr("training.loop.fixed_samples", partial(fixed_samples, count=64))


class StopAfter:
    """A stop condition that ends a run after a number of iterations."""

    def __init__(self, iterations):
        self.remaining = iterations

    def __call__(self):
        self.remaining -= 1
        return "enough" if self.remaining == 0 else None


BY_GRADIENTS = [name for name in families.names() if families.get(name).recipe.epochs]
CLOSED_FORM = [name for name in families.names() if name not in BY_GRADIENTS]


@pytest.mark.parametrize("family", CLOSED_FORM)
def test_a_closed_form_family_is_fitted_once(family, tmp_path, capsys):
    assert fit(family, tmp_path / "run") == 0
    assert "done: 1497 images" in capsys.readouterr().out
    before = (tmp_path / "run" / "latest.pt").stat()
    assert fit(family, tmp_path / "run") == 0
    assert (tmp_path / "run" / "latest.pt").stat().st_mtime_ns == before.st_mtime_ns
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0
    _, manifest = store.load(tmp_path / "weights" / "run")
    assert manifest.training["images_seen"] == 1497


@pytest.mark.usefixtures("_few_validation_samples")
@pytest.mark.parametrize("family", BY_GRADIENTS)
def test_a_resumed_run_equals_an_uninterrupted_run_to_the_bit(family, tmp_path, monkeypatch):
    flags = ["--epochs", "0.25", "--every", "200"]
    assert fit(family, tmp_path / "straight", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("training.fitting.stop_reason", lambda *_: StopAfter(2))
        assert fit(family, tmp_path / "split", *flags) != 0
    middle = weights_of(tmp_path / "split")["images"]
    assert fit(family, tmp_path / "split", *flags) == 0
    straight, split = weights_of(tmp_path / "straight"), weights_of(tmp_path / "split")
    assert 0 < middle < straight["images"]
    assert_equal(straight["family"], split["family"])
    assert_equal(straight["average"], split["average"])
    assert straight["batches"] == split["batches"]
    assert straight["best"] == split["best"]
    assert torch.equal(straight["random"]["cpu"], split["random"]["cpu"])


def test_the_log_of_a_resumed_run_has_every_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr("training.fitting.stop_reason", lambda *_: StopAfter(80))
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


def test_a_run_writes_grids_scalars_and_both_checkpoints(tmp_path):
    fit("vae", tmp_path / "run", "--epochs", "0.5", "--every", "300")
    run = tmp_path / "run"
    grids = sorted(path.name for path in (run / "grids").iterdir())
    assert len(grids) == 3  # at 300, at 600, at the end
    assert all((run / "grids" / name).read_bytes().startswith(b"\x89PNG") for name in grids)
    assert list((run / "tensorboard").iterdir())
    scores = [json.loads(line).get("sample_distance") for line in (run / "log.jsonl").read_text().splitlines()]
    assert weights_of(run, "best")["best"] == min(score for score in scores if score is not None)


def test_each_player_has_its_own_learning_rate(tmp_path):
    fit("dcgan", tmp_path, "--epochs", "0.1", "--lr", "0.001", "--discriminator-pace", "4", "--no-cosine")
    optimizers = weights_of(tmp_path)["optimizers"]
    rates = {player: optimizer["param_groups"][0]["lr"] for player, optimizer in optimizers.items()}
    assert rates == {"discriminator": pytest.approx(0.004), "generator": pytest.approx(0.001)}


def test_a_strip_of_a_colour_run_is_in_colour(tmp_path):
    fit("gan", tmp_path / "run", "--epochs", "0.2", "--channels", "3", "--size", "8x12")
    assert main(["strip", str(tmp_path / "run"), str(tmp_path / "strip.png")]) == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert (strip.mode, strip.size) == ("RGB", (10 * 12, 8))


def test_a_strip_has_one_row_per_selected_grid(tmp_path, capsys):
    fit("gan", tmp_path / "run", "--epochs", "1", "--every", "300")
    grids = len(list((tmp_path / "run" / "grids").iterdir()))
    assert grids == 5
    assert main(["strip", str(tmp_path / "run"), str(tmp_path / "strip.png"), "--every", "2"]) == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (10 * 8, 2 * 8)
    assert main(["strip", str(tmp_path / "run"), str(tmp_path / "none.png"), "--every", "9"]) == 2
    assert "train longer" in capsys.readouterr().err


def test_the_error_for_a_changed_configuration_names_the_difference(tmp_path, capsys):
    assert fit("gan", tmp_path / "run", "--epochs", "0.1") == 0
    assert fit("gan", tmp_path / "run", "--epochs", "0.1", "--lr", "0.5") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "recipe.lr: started with 0.0002, now 0.5" in error


def test_two_processes_do_not_train_one_run(tmp_path, capsys):
    run = tmp_path / "run"
    with locked(run):
        assert fit("gan", run, "--epochs", "0.1") == 2
    assert f"another process writes into {run}; wait until it ends, or name another --run" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert fit("gan", run, "--epochs", "0.1") == 0


def test_a_run_of_another_revision_is_neither_resumed_nor_exported(tmp_path, capsys):
    assert fit("pca", tmp_path / "run") == 0
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"revision": 1', '"revision": 0'))
    assert fit("pca", tmp_path / "run") == 2
    assert "revision: started with 0, now 1" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path)]) == 2
    assert "was trained with another revision of pca; start a new run" in capsys.readouterr().err


def test_caveat_writes_its_text_into_the_manifest(weights, tmp_path, capsys):
    shutil.copytree(weights / "pca", tmp_path / "pca")
    assert main(["caveat", "pca", "Ghosts around strokes.", "--weights", str(tmp_path)]) == 0
    assert store.load(tmp_path / "pca")[1].caveat == "Ghosts around strokes."
    assert main(["caveat", "nope", "x", "--weights", str(tmp_path)]) == 2
    assert "not a weights directory" in capsys.readouterr().err


def test_a_checkpoint_with_other_tensors_is_refused_in_one_line(tmp_path, capsys):
    assert fit("pca", tmp_path / "run") == 0
    state = weights_of(tmp_path / "run")
    state["average"]["components.basis"] = state["average"].pop("components.W")
    checkpoint.save(tmp_path / "run" / "latest.pt", state)
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "another version of pca" in error[-1]
    assert not (tmp_path / "weights" / "run").exists()


def test_impossible_settings_leave_no_run_directory(tmp_path):
    assert main(["fit", "ddpm", "--data", "digits", "--width", "12", "--run", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_other_data(tmp_path, capsys):
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
def test_a_full_disk_is_a_one_line_error_and_the_run_resumes_once_there_is_space(limit, tmp_path, capsys):
    flags = ["--epochs", "0.2"]
    with file_size_limit(limit):  # which does not apply to the output: `capsys` keeps it in memory
        assert fit("gan", tmp_path, *flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: File too large: ")
    assert fit("gan", tmp_path, *flags) == 0
    assert weights_of(tmp_path)["images"] >= 0.2 * 1497


def test_every_use_of_an_image_is_counted(tmp_path):
    fit("wgan_gp", tmp_path / "run", "--epochs", "0.2", "--critic-steps", "3")
    state = weights_of(tmp_path / "run")
    used = state["batches"]["epoch"] * 1497 + state["batches"]["position"]
    assert state["images"] == used >= 0.2 * 1497
    assert used % 3 == 0


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_lower_precision_trains(precision, tmp_path):
    assert fit("vae", tmp_path / "run", "--epochs", "0.1", "--precision", precision) == 0
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "run")["average"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "gan", "--data", "nowhere"], "'nowhere' is neither a data set nor a folder"),
        (["fit", "gan", "--data", "digits", "--compile"], "unrecognized arguments: --compile"),
        (["fit", "gan", "--data", "digits", "--device", "cuda"], "torch sees no GPU"),
        (["export", "/nowhere"], "is not a run"),
        (["evaluate"], "name the weights"),
        (["evaluate", "gan", "--write", "--steps", "3"], "the weights' own defaults"),
        (["evaluate", "gan", "--write", "--judge", "select"], "selects nothing"),
        (["evaluate", "gan", "-n", "5"], "say nothing about a distribution"),
        (["fit", "nope"], "invalid choice: 'nope'"),
        (["fit", "gan", "--batch", "many"], "invalid int value"),
        (["fit", "gan", "--data", "digits", "--batch", "0"], "--batch"),
        (["fit", "ddpm", "--data", "digits", "--width", "12"], "cannot build ddpm with these settings"),
        (["strip", "runs/x", "x.png", "--every", "0"], "--every"),
        ([], "COMMAND"),
    ],
)
def test_usage_errors_are_one_line_and_exit_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_field_of_a_config_is_a_flag(capsys):
    for name in families.names():
        with pytest.raises(SystemExit):
            main(["fit", name, "--help"])
        text = capsys.readouterr().out
        kind = families.get(name)
        recipe = kind.recipe.__dataclass_fields__ if name in BY_GRADIENTS else ()
        for field in (*kind.Config.__dataclass_fields__, *recipe):
            assert f"--{field.replace('_', '-')}" in text


@pytest.mark.usefixtures("_few_validation_samples")
def test_the_manifest_of_an_export_describes_the_run(tmp_path):
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
    ("family", "flags", "message"),
    [
        ("ddpm", ["--steps", "0"], "--steps: ddpm takes 1 to 1000"),
        ("ddpm", ["--sampler", "euler"], "--sampler: ddpm has dpm++2m, ddim, ddpm"),
        ("ddpm", ["--guidance", "-1"], "--guidance: ddpm takes 0.0 to 10.0"),
        ("gan", ["--guidance", "2"], "--guidance: gan takes none"),
        ("gan", ["--sampler", "ddim"], "--sampler: gan has none"),
    ],
)
def test_sampling_options_out_of_range_are_refused(family, flags, message):
    kind = families.get(family)
    args = parser().parse_args(["export", "run", *flags])
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sampling_options(kind(kind.Config()), sampling_options(args))


def interrupt(number, run):
    """Send signal `number` to this process after the next line in the log of `run`; returns the thread that waits."""

    def lines():
        log = run / "log.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def wait_and_send(before, deadline):
        while time.monotonic() < deadline:
            if lines() > before:
                os.kill(os.getpid(), number)
                break
            time.sleep(0.01)

    thread = threading.Thread(target=wait_and_send, args=(lines(), time.monotonic() + 60))
    thread.start()
    return thread


def test_a_run_leaves_the_handlers_of_signals_as_they_were(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert fit("gan", tmp_path / "run", "--epochs", "0.1") == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_save_the_run_and_the_resumed_run_ends_with_the_uninterrupted_run_s_weights(tmp_path, capsys):
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    flags = ["--epochs", "8"]
    assert fit("gan", straight, *flags) == 0
    images = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        thread = interrupt(number, interrupted)
        assert fit("gan", interrupted, *flags) == 130
        thread.join()
        assert "run the same command to resume" in capsys.readouterr().out
        images.append(weights_of(interrupted)["images"])
    assert images == sorted(set(images))
    assert images[-1] < 8 * 1497
    assert fit("gan", interrupted, *flags) == 0
    assert_equal(weights_of(straight)["family"], weights_of(interrupted)["family"])


@pytest.mark.parametrize(
    ("family", "function", "signals"),
    [
        ("gmm", "models.mixture.fit_pooled", 1),
        ("gan", "training.loop.fixed_samples", 2),
        ("gan", "training.fitting.train", 2),
    ],
)
def test_ctrl_c_ends_what_runs_long_outside_the_loop(family, function, signals, tmp_path, monkeypatch, capfd):
    def run_long(*_, **__):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    command = ["fit", family, "--run", str(tmp_path), "--data", "digits", "--device", "cpu", *TINY.get(family, [])]
    started_at = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(function, run_long)
        assert drawbridge_main(command) == 130
    assert time.monotonic() - started_at < 50
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"
    assert fit(family, tmp_path, *([] if family == "gmm" else ["--epochs", "200", "--max-minutes", "0.01"])) == 0


@pytest.mark.parametrize("module", ["torch", "sklearn.datasets"])
def test_ctrl_c_during_imports_is_one_line_even_if_a_library_catches_it(module, tmp_path):
    """`module` interrupts the process while it is imported, and ignores the exception."""
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    for parent in list(path.relative_to(tmp_path).parents)[:-1]:
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "__init__.py").write_text("")
    path.write_text("import os\ntry:\n    os.kill(os.getpid(), 2)\nexcept KeyboardInterrupt:\n    pass\n")
    command = [sys.executable, "-m", "training", "fit", "pca", "--data", "digits", "--run", str(tmp_path / "run")]
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        command, cwd=ROOT, env={**environment(), **path}, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.fixture
def _loss_becomes_nan(monkeypatch):
    """The discriminator's loss of `gan` is not a number from its 81st step on."""
    loss, calls = families.get("gan").loss, iter(range(10**9))

    def loss_with_nan(self, player, x, label):
        terms = loss(self, player, x, label)
        if player == "discriminator" and next(calls) >= 80:
            terms["loss"] = terms["loss"] * float("nan")
        return terms

    monkeypatch.setattr(families.get("gan"), "loss", loss_with_nan)


@pytest.mark.usefixtures("_loss_becomes_nan")
@pytest.mark.parametrize("every", ["200", "5000"])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_finite_checkpoint_stays(every, tmp_path, capsys):
    assert fit("gan", tmp_path, "--epochs", "4", "--max-minutes", "0.0001") == 0
    saved = weights_of(tmp_path)["images"]
    capsys.readouterr()
    assert fit("gan", tmp_path, "--epochs", "4", "--every", every) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "checkpoints saved before are intact; start another run, with a lower --lr" in error
    state = weights_of(tmp_path)
    assert saved <= state["images"] <= 80 * 32
    checkpoint.require_finite(state)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert main(["export", str(tmp_path), "--weights", str(tmp_path / "weights")]) == 0


def test_weights_that_are_not_finite_are_not_exported(tmp_path, capsys):
    assert fit("gan", tmp_path / "run", "--epochs", "0.1") == 0
    state = weights_of(tmp_path / "run")
    next(iter(state["average"].values()))[0] = float("inf")
    checkpoint.save(tmp_path / "run" / "latest.pt", state)
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 2
    assert "has values that are not finite; export another checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "weights" / "run").exists()


def picture_folder(folder, count=40):
    for i in range(count):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 5 * i).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("_few_validation_samples")
@pytest.mark.parametrize("interrupted", [False, True])
def test_more_epochs_continue_a_run_and_end_with_the_weights_of_a_straight_run(interrupted, tmp_path, monkeypatch):
    flags = ["--no-cosine", "--every", "400"]
    assert fit("vae", tmp_path / "straight", "--epochs", "1", *flags) == 0
    with monkeypatch.context() as patch:
        if interrupted:
            patch.setattr("training.fitting.stop_reason", lambda *_: StopAfter(5))
        assert fit("vae", tmp_path / "run", "--epochs", "0.5", *flags) == (130 if interrupted else 0)
    assert fit("vae", tmp_path / "run", "--epochs", "1", *flags) == 0
    straight, extended = weights_of(tmp_path / "straight"), weights_of(tmp_path / "run")
    assert_equal(straight["average"], extended["average"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"]["epochs"], config["extended_from"]) == (1.0, [0.5])
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0
    manifest = store.read_manifest(tmp_path / "weights" / "run")
    assert manifest.training["extended_from"] == [0.5]


def test_an_extended_run_with_a_cosine_schedule_is_resumed_to_the_bit(tmp_path, monkeypatch):
    flags = ["--cosine", "--every", "400"]
    for name in ("straight", "split"):
        assert fit("gan", tmp_path / name, "--epochs", "0.5", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("training.fitting.stop_reason", lambda *_: StopAfter(5))
        assert fit("gan", tmp_path / "split", "--epochs", "1", *flags) == 130
    for name in ("straight", "split"):
        assert fit("gan", tmp_path / name, "--epochs", "1", *flags) == 0
    straight, split = (weights_of(tmp_path / name) for name in ("straight", "split"))
    assert_equal(straight["average"], split["average"])
    assert straight["images"] >= 1497
    rate = straight["optimizers"]["generator"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0, abs=1e-6)  # the schedule ends where the longer run does


def test_fewer_epochs_are_refused(tmp_path, capsys):
    assert fit("gan", tmp_path, "--epochs", "0.2") == 0
    assert fit("gan", tmp_path, "--epochs", "0.1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "recipe.epochs: started with 0.2, now 0.1" in error
    assert "--epochs may be larger" in error


def test_another_path_to_the_same_images_continues_a_run(tmp_path, monkeypatch, capsys):
    picture_folder(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").symlink_to("pictures")
    command = ["fit", "gan", "--batch", "8", "--device", "cpu", "--run", "run", "--held-out", "0"]
    epochs = 1
    for path in ("pictures", "./pictures/", str(tmp_path / "pictures"), "other"):
        assert main([*command, "--data", path, "--epochs", str(epochs)]) == 0, path
        assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == path
        epochs += 1
    assert weights_of(tmp_path / "run")["images"] == 4 * 40
    capsys.readouterr()
    assert main([*command, "--data", "digits", "--epochs", "5"]) == 2
    assert "digits holds other images than when run started" in capsys.readouterr().err


@pytest.mark.usefixtures("_few_validation_samples")
@pytest.mark.parametrize("family", ["pca", "ae", "cgan"])
def test_an_export_does_not_need_the_training_images(family, tmp_path, capsys):
    folder = picture_folder(tmp_path / "pictures")
    run = tmp_path / "run"
    recipe = [] if family == "pca" else [*TINY[family][:-1], "8", "--epochs", "1"]
    data = ["--data", str(folder), "--held-out", "0"]
    assert main(["fit", family, *data, "--device", "cpu", "--run", str(run), *recipe]) == 0
    digests = []
    for _ in range(2):
        assert main(["export", str(run), "--weights", str(tmp_path / "weights")]) == 0
        digests.append(store.load(tmp_path / "weights" / "run")[1].digest)
        shutil.rmtree(folder, ignore_errors=True)
    assert digests[0] == digests[1]
    manifest = store.read_manifest(tmp_path / "weights" / "run")
    assert manifest.dataset["images"] == 40
    assert manifest.classes == (("a", "b") if families.get(family).conditional else ())
    state = checkpoint.load(run / "latest.pt")
    checkpoint.save(run / "latest.pt", {**state, "fitted_at": None})  # interrupted between two validations
    assert main(["export", str(run), "--weights", str(tmp_path / "weights")]) == (0 if family == "cgan" else 2)
    if family != "cgan":
        assert f"'{folder}' is neither" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_resumed_and_exported(tmp_path):
    assert fit("pca", tmp_path / "run") == 0
    config = tmp_path / "run" / "config.json"
    fields = json.loads(config.read_text())
    state = weights_of(tmp_path / "run")
    del fields["dataset"], fields["extended_from"], state["fitted_at"]
    config.write_text(json.dumps(fields))
    checkpoint.save(tmp_path / "run" / "latest.pt", state)
    assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0
    assert store.read_manifest(tmp_path / "weights" / "run").dataset["images"] == 1497
    assert fit("pca", tmp_path / "run") == 0
    assert json.loads(config.read_text())["dataset"]["images"] == 1497


@pytest.mark.parametrize("content", ["", "[]", '{"family": "pca", "colour": 1}'])
def test_an_invalid_configuration_of_a_run_is_one_line(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert main(["export", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not the configuration of a run" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("family", CLOSED_FORM)
def test_a_closed_form_family_has_no_batches(family, tmp_path, capsys):
    folder = picture_folder(tmp_path / "pictures", 30)
    command = ["fit", family, "--data", str(folder), "--device", "cpu", "--run", str(tmp_path / "run")]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--batch", "8"]) == 2
    assert "unrecognized arguments: --batch 8" in capsys.readouterr().err


# -- own images --------------------------------------------------------------------------------------------------------


def colour_folder(folder, count=20, size=(20, 16)):
    for number in range(count):
        path = folder / ("ice cream" if number % 3 else "pizza") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", size, (250, 10 * number, 0, 100)).save(path)
    return folder


OWN = ["--size", "16x12", "--background", "#0000ff", "--resize", "pad", "--device", "cpu", "--batch", "32"]


def test_own_images_are_trained_and_exported(tmp_path, capsys):
    """Fewer of them than a batch."""
    folder = colour_folder(tmp_path / "my pictures")
    run = tmp_path / "run"
    command = ["fit", "gan", "--data", str(folder), "--run", str(run), *OWN, "--epochs", "5"]
    assert main([*command, "--flip", "--shift", "2"]) == 0
    output = capsys.readouterr().out
    count = len(data.load(str(folder), options=Options(size=(16, 12))).images)
    assert f"data: my pictures, {count} images of 3x16x12, 2 classes\n" in output
    assert re.search(r"^ +\d+ ice cream$", output, re.MULTILINE)
    source = ["--attribution", "my own, CC0"]
    assert main(["export", str(run), "--weights", str(tmp_path / "weights"), *source]) == 0
    manifest = store.read_manifest(tmp_path / "weights" / "run")
    assert manifest.attribution == "my own, CC0"
    assert manifest.data_shape == (3, 16, 12)
    assert manifest.uploads == "picture"
    assert manifest.dataset == {
        "name": "my pictures",
        "digest": json.loads((run / "config.json").read_text())["dataset"]["digest"],
        "images": count,
        "resize": "pad",
        "background": "#0000ff",
        "augmentation": {"flip": True, "shift": 2},
    }
    with Image.open(tmp_path / "weights" / "run" / "samples.png") as samples:
        assert (samples.mode, samples.size) == ("RGB", (120, 160))


def test_an_export_reads_the_images_as_the_run_did(tmp_path):
    folder = colour_folder(tmp_path / "pictures")
    run = tmp_path / "run"
    assert main(["fit", "ae", "--width", "8", "--data", str(folder), "--run", str(run), *OWN, "--epochs", "2"]) == 0
    state = checkpoint.load(run / "latest.pt")
    checkpoint.save(run / "latest.pt", {**state, "fitted_at": None})  # interrupted between two validations
    assert main(["export", str(run), "--weights", str(tmp_path / "weights")]) == 0


def test_an_augmented_run_is_resumed_to_the_bit(tmp_path, monkeypatch):
    flags = ["--epochs", "0.2", "--every", "200", "--flip", "--shift", "1"]
    assert fit("gan", tmp_path / "straight", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("training.fitting.stop_reason", lambda *_: StopAfter(3))
        assert fit("gan", tmp_path / "split", *flags) != 0
    assert fit("gan", tmp_path / "split", *flags) == 0
    straight, split = weights_of(tmp_path / "straight"), weights_of(tmp_path / "split")
    assert_equal(straight["family"], split["family"])
    assert fit("gan", tmp_path / "plain", *flags[:4]) == 0
    assert not torch.equal(
        next(iter(weights_of(tmp_path / "plain")["family"].values())), next(iter(straight["family"].values()))
    )


def test_a_run_is_not_resumed_with_other_augmentation_or_other_reading(tmp_path, capsys):
    assert fit("gan", tmp_path / "run", "--epochs", "0.1", "--flip") == 0
    assert fit("gan", tmp_path / "run", "--epochs", "0.1") == 2
    assert "augmentation.flip: started with True, now None" in capsys.readouterr().err
    assert fit("gan", tmp_path / "run", "--epochs", "0.1", "--flip", "--size", "12") == 2
    assert "is read with other flags; use another --run" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", ["gan", "cgan", "pca", "gmm", "kde", "ae", "supervised_ae", "flow"])
@pytest.mark.usefixtures("_few_validation_samples")
def test_very_few_images_of_one_class_train_or_are_refused_in_one_line(family, count, tmp_path, capsys):
    folder = tmp_path / "pictures"
    for number in range(count):
        (folder / "only").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 30 * number, 5)).save(folder / "only" / f"{number}.png")
    recipe = [*TINY[family], "--epochs", "20"] if family in TINY else []
    command = ["fit", family, "--data", str(folder), "--held-out", "0", "--device", "cpu", *recipe]
    estimated = family not in ("gan", "cgan", "flow")
    assert main([*command, "--run", str(tmp_path / "run")]) == (2 if estimated and count == 1 else 0)
    error = capsys.readouterr().err.strip().splitlines()
    if estimated and count == 1:
        assert error == [f"error: {family} needs at least 2 training images; pictures has fewer"]
    else:
        assert main(["export", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "30"], "--size: use multiples of 4 from 8 to 128; it is 30x30"),
        (["--size", "big"], "--size: use a number, or HEIGHTxWIDTH"),
        (["--channels", "2"], "--channels: use 1 (grey) or 3 (colour)"),
        (["--background", "nothing"], "--background: 'nothing' is not a colour"),
        (["--resize", "bend"], "--resize: invalid choice"),
        (["--held-out", "1"], "--held-out: use 0 to less than 1"),
        (["--shift", "5"], "--shift: use 0 to 4"),
        (["--shift", "-1"], "--shift: use 0 to 4"),
        (["--batch", "0"], "--batch: use at least 1"),
    ],
)
def test_flags_about_images_are_checked(flags, message, tmp_path, capsys):
    assert fit("gan", tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_field_of_a_family_whose_flag_is_taken_has_a_prefix(tmp_path):
    assert fit("kde", tmp_path / "run", "--model-held-out", "50") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["held_out"] == 50


@pytest.mark.parametrize(
    ("data_set", "flags", "expected"),
    [
        ("mnist", [], "digit"),
        ("kmnist", [], "digit"),
        ("fashion-mnist", [], "picture"),
        ("fashion-mnist", ["--uploads", "digit"], "digit"),
        ("mnist", ["--uploads", "picture"], "picture"),
    ],
)
def test_uploads_to_pen_drawings_are_digits(data_set, flags, expected, tmp_path):
    run = tmp_path / "run"
    assert fit("pca", run, "--size", "28") == 0
    config = json.loads((run / "config.json").read_text())
    config["dataset"]["name"] = config["data"] = data_set
    (run / "config.json").write_text(json.dumps(config))
    assert main(["export", str(run), "--weights", str(tmp_path / "weights"), *flags]) == 0
    assert store.read_manifest(tmp_path / "weights" / "run").uploads == expected


def test_uploads_to_images_of_another_shape_are_no_digits(tmp_path, capsys):
    run = tmp_path / "run"
    assert fit("pca", run, "--size", "28x32") == 0
    assert main(["export", str(run), "--weights", str(tmp_path / "weights"), "--uploads", "digit"]) == 2
    assert "--uploads: digit needs images of 1x28x28; these are 1x28x32" in capsys.readouterr().err
