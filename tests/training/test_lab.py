"""The lab: the quick form of every experiment, the command and its page."""

import dataclasses
import io
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from harness.server import ROOT, environment
from training.cli import main
from training.lab import experiments, page, run
from training.lab.distances import jensen_shannon, wasserstein1, wasserstein2
from training.lab.experiment import Findings, Number, Setting, at_least, at_most, near, reported

FAST = ("xy_game",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in experiments.NAMES]
)
def test_all_numbers_of_the_quick_form_hold(name):
    experiment = experiments.get(name)
    findings = experiment.measure(Setting(quick=True))
    assert any(number.relation != "reported" for number in findings.numbers)
    assert not [number for number in findings.numbers if not number.holds]
    for picture in experiment.draw([findings]):
        assert picture.file.startswith(name)
        with Image.open(io.BytesIO(picture.data)) as image:
            assert min(image.size) >= 200
            assert getattr(image, "n_frames", 1) > 1 if picture.file.endswith(".webp") else image.format == "PNG"


def test_a_number_holds_within_its_bounds_and_nan_never_does():
    nan = float("nan")
    assert near("a", 1.01, 1, 0.02, "").holds
    assert not near("a", 1.03, 1, 0.02, "").holds
    assert at_least("a", 2, 2, "").holds
    assert not at_least("a", 1.9, 2, "").holds
    assert at_most("a", 2, 2, "").holds
    assert not at_most("a", 2.1, 2, "").holds
    assert reported("a", 7).holds
    assert not any(number.holds for number in (near("a", nan, 1, 1, ""), at_least("a", nan, 0, ""), reported("a", nan)))


def test_a_merged_number_holds_if_it_holds_for_every_seed():
    findings = [Findings((at_least("modes", modes, 8, "all"),)) for modes in (8, 8, 7)]
    (merged,) = run.merge(findings)
    assert (round(merged["measured"], 3), round(merged["deviation"], 3)) == (7.667, 0.577)
    assert not merged["holds"]
    (single,) = run.merge(findings[:1])
    assert (single["measured"], single["deviation"], single["holds"]) == (8, None, True)


def test_expectations_are_short_texts():
    def expected(number: Number) -> str:
        return page.expected(run.merge([Findings((number,))])[0])

    assert expected(near("a", 0, -0.5, 0.02, "")) == "−0.5 ± 0.02"
    assert expected(at_least("a", 0, 0.95, "")) == "≥ 0.95"
    assert expected(at_most("a", 0, 3, "")) == "≤ 3"
    assert expected(reported("a", 0)) == ""


def test_distances_of_known_point_sets():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert wasserstein1(x, x.flip(0) + torch.tensor([0.0, 2.0])) == pytest.approx(2)
    y = torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    assert wasserstein1(x, y) == pytest.approx(2)
    assert wasserstein2(x, y) == pytest.approx(5**0.5)
    half = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert jensen_shannon(half, half.flip(0)) == pytest.approx(0.693147, abs=1e-6)
    assert jensen_shannon(half, 5 * half) == 0


@pytest.mark.slow
def test_the_command_writes_files_and_a_page_that_includes_earlier_results(tmp_path, capsys):
    earlier = {"title": "Written before", "claim": "", "method": "", "quick": True, "data": None, "seeds": 1}
    (tmp_path / "density.json").write_text(json.dumps({**earlier, "seconds": 1.0, "numbers": [], "pictures": []}))
    assert main(["lab", "xy_game", "--quick", "--output", str(tmp_path)]) == 0
    assert "xy_game: 7 of 7 numbers as expected" in capsys.readouterr().out
    result = json.loads((tmp_path / "xy_game.json").read_text())
    assert len(result["numbers"]) == 7
    text = (tmp_path / "index.html").read_text()
    assert text.index("Written before") < text.index(result["title"])
    for number in result["numbers"]:
        assert page.html.escape(number["what"]) in text
    assert (tmp_path / "lab.css").exists()
    assert all((tmp_path / picture["file"]).exists() for picture in result["pictures"])


def test_a_number_that_does_not_hold_is_printed_and_marked_on_the_page(tmp_path, capsys, monkeypatch):
    wrong = Findings((at_least("modes", 7, 8, "all"),))
    experiment = experiments.get("xy_game")
    monkeypatch.setattr(run.experiments, "get", lambda _: _without_pictures(experiment))
    assert not run.write("xy_game", [(pickle.dumps(wrong), 1.0)], Setting(), tmp_path)
    assert "modes: 7, expected ≥ 8" in capsys.readouterr().out
    assert "does not hold" in page.page(tmp_path)


def _without_pictures(experiment):
    return dataclasses.replace(experiment, draw=lambda _: [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown experiment 'nothing'; the experiments are density"),
        (["xy_game", "--seeds", "0"], "--seeds: use at least 1"),
        (["xy_game", "--data", "cats"], "invalid choice"),
    ],
)
def test_usage_errors_are_one_line_and_exit_status_2(arguments, message, capsys):
    assert main(["lab", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_data_set_may_be_in_another_spelling(monkeypatch):
    settings = []
    monkeypatch.setattr(run, "command", lambda *given: settings.append(given[1]) or 0)
    for spelling in ("digits", "Digits", "FashionMNIST"):
        assert main(["lab", "--data", spelling]) == 0
    assert [setting.data for setting in settings] == ["digits", "digits", "fashion-mnist"]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "lab", "density", "diffusion_2d", "--quick"],
        cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "2 experiments" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to every process
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_an_output_directory_that_cannot_be_created_is_a_one_line_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["lab", "xy_game", "--quick", "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
