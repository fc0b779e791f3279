"""Every experiment's quick form comes out as theory has it, and the page says so."""

import dataclasses
import io
import json
import pickle

import pytest
import torch
from PIL import Image

from training.cli import main
from training.lab import experiments, page, run
from training.lab.distances import jensen_shannon, wasserstein1, wasserstein2
from training.lab.experiment import Findings, Number, Setting, at_least, at_most, near, reported


@pytest.mark.parametrize("name", experiments.NAMES)
def test_the_quick_form_comes_out_as_expected(name):
    experiment = experiments.get(name)
    found = experiment.measure(Setting(quick=True))
    assert any(number.relation != "reported" for number in found.numbers)
    assert not [number for number in found.numbers if not number.holds]
    for picture in experiment.draw([found]):
        assert picture.file.startswith(name)
        with Image.open(io.BytesIO(picture.data)) as image:
            assert min(image.size) >= 200
            assert getattr(image, "n_frames", 1) > 1 if picture.file.endswith(".webp") else image.format == "PNG"


def test_a_number_holds_where_it_is_as_expected_and_nan_never_does():
    nan = float("nan")
    assert near("a", 1.01, 1, 0.02, "").holds
    assert not near("a", 1.03, 1, 0.02, "").holds
    assert at_least("a", 2, 2, "").holds
    assert not at_least("a", 1.9, 2, "").holds
    assert at_most("a", 2, 2, "").holds
    assert not at_most("a", 2.1, 2, "").holds
    assert reported("a", 7).holds
    assert not any(number.holds for number in (near("a", nan, 1, 1, ""), at_least("a", nan, 0, ""), reported("a", nan)))


def test_seeds_are_merged_and_one_that_fails_is_told():
    found = [Findings((at_least("modes", modes, 8, "all"),)) for modes in (8, 8, 7)]
    (merged,) = run.merge(found)
    assert (round(merged["measured"], 3), round(merged["deviation"], 3)) == (7.667, 0.577)
    assert not merged["holds"]
    (alone,) = run.merge(found[:1])
    assert (alone["measured"], alone["deviation"], alone["holds"]) == (8, None, True)


def test_what_should_be_is_said_in_few_characters():
    def told(number: Number) -> str:
        return page.expected(run.merge([Findings((number,))])[0])

    assert told(near("a", 0, -0.5, 0.02, "")) == "−0.5 ± 0.02"
    assert told(at_least("a", 0, 0.95, "")) == "≥ 0.95"
    assert told(at_most("a", 0, 3, "")) == "≤ 3"
    assert told(reported("a", 0)) == ""


def test_the_distances_are_those_of_clouds_that_are_known():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert wasserstein1(x, x.flip(0) + torch.tensor([0.0, 2.0])) == pytest.approx(2)
    y = torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    assert wasserstein1(x, y) == pytest.approx(2)
    assert wasserstein2(x, y) == pytest.approx(5**0.5)
    half = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert jensen_shannon(half, half.flip(0)) == pytest.approx(0.693147, abs=1e-6)
    assert jensen_shannon(half, 5 * half) == 0


def test_the_command_writes_files_and_page_and_adds_to_them(tmp_path, capsys):
    output = tmp_path / "lab"
    assert main(["lab", "xy_game", "--quick", "--output", str(output)]) == 0
    assert "xy_game: 7 of 7 numbers as expected" in capsys.readouterr().out
    told = json.loads((output / "xy_game.json").read_text())
    assert len(told["numbers"]) == 7
    (output / "density.json").write_text(json.dumps({**told, "title": "Written before", "pictures": []}))
    assert main(["lab", "xy_game", "--quick", "--output", str(output)]) == 0
    text = (output / "index.html").read_text()
    assert text.index("Written before") < text.index(told["title"])
    for number in told["numbers"]:
        assert page.html.escape(number["what"]) in text
    assert (output / "lab.css").exists()
    assert all((output / picture["file"]).exists() for picture in told["pictures"])


def test_a_number_that_does_not_come_out_is_told_and_shown(tmp_path, capsys, monkeypatch):
    wrong = Findings((at_least("modes", 7, 8, "all"),))
    experiment = experiments.get("xy_game")
    monkeypatch.setattr(run.experiments, "get", lambda _: _without_pictures(experiment))
    assert not run.write("xy_game", [(pickle.dumps(wrong), 1.0)], Setting(), tmp_path)
    assert "modes: 7, and not ≥ 8" in capsys.readouterr().out
    assert "does not hold" in page.page(tmp_path)


def _without_pictures(experiment):
    return dataclasses.replace(experiment, draw=lambda _: [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no experiment is called nothing; there are density"),
        (["xy_game", "--seeds", "0"], "--seeds: 1 at least"),
        (["xy_game", "--data", "cats"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line_and_2(arguments, said, capsys):
    assert main(["lab", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_directory_that_cannot_be_is_one_line_and_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["lab", "xy_game", "--quick", "--output", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
