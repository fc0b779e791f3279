"""The command `usefulness`: which images the classifiers are trained on, what follows from their accuracies."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from harness.server import ROOT, environment
from models import store
from models.families.gmm import GMM, GMMConfig
from models.pixels import to_unit
from tests.conftest import manifest_of
from tests.training.judging import shapes
from training import data, docs, draws, pool
from training.cli import main
from training.data import Dataset
from training.pool import ProcessKilled, completed
from training.sources import SampleSet, Weights
from training.usefulness import experiment, picture, results
from training.usefulness.experiment import BATCH, KINDS, Run
from training.usefulness.results import Results


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    """The splits of a data set of coloured shapes, some without a label."""
    train = shapes(120, 0)
    labels = train.labels.clone()
    labels[::7] = -1
    return {"train": data.make("shapes", train.images, labels, train.classes), "test": shapes(60, 1)}


@pytest.fixture
def project(splits: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with weights `shapes`, a mixture for the data set, and `plain`, one that takes no label.

    Tasks run in this process.
    """
    train = splits["train"]
    described = {"name": "shapes", "digest": train.digest, "images": len(train.images)}
    for name, classes in {"shapes": train.classes, "plain": ()}.items():
        family = GMM(GMMConfig(code=8, most=2), (3, 12, 16), len(classes))
        family.fit(to_unit(shapes(120, 0).images), shapes(120, 0).labels if classes else torch.full((120,), -1))
        manifest = dataclasses.replace(manifest_of(family, classes), dataset=described)
        store.save(tmp_path / "weights" / name, family.for_sampling(), manifest, b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *arguments: splits[arguments[2]])
    monkeypatch.setattr(pool, "completed", inline)
    monkeypatch.setattr(draws, "CHUNK", 64)
    return tmp_path


def inline(
    function: Callable[..., Any],
    tasks: Mapping[Any, tuple[Any, ...]],
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[tuple[Any, Any]]:
    """`pool.completed` without other processes."""
    if initializer is not None:
        initializer(*initargs)
    for key, arguments in tasks.items():
        yield key, function(*arguments)


FLAGS = ("--draws", "90", "--updates", "3", "--per-label", "2", "500", "--seeds", "0", "1")
CLASSIFIERS = 2 * (4 * 2 + 1)
"""Two seeds of four kinds with two sizes, and of draws alone."""


def numbers() -> Results:
    """Results of two sizes: draws help the first, and harm the second beside augmentation only."""
    accuracy = {
        "real": [[0.50, 0.52, 0.54], [0.90, 0.91, 0.92]],
        "real_augmented": [[0.60, 0.62, 0.64], [0.95, 0.96, 0.97]],
        "both": [[0.80, 0.82, 0.85], [0.91, 0.90, 0.925]],
        "both_augmented": [[0.81, 0.83, 0.86], [0.90, 0.91, 0.925]],
        "draws": [[0.79, 0.80, 0.81]],
    }
    return Results("m", "d", "shapes", 3, 120, 60, 90, 3, (0, 1, 2), (10, None), (30, 120), accuracy)


def test_a_subset_has_so_many_images_of_each_label_and_is_part_of_the_larger_one() -> None:
    labels = torch.tensor([0, 1, -1, 0, 1, 1, 2, 0, -1, 1])
    two, three = (experiment.subset(labels, n, seed=3) for n in (2, 3))
    assert labels[two].bincount().tolist() == [2, 2, 1]  # label 2 has one image only
    assert labels[three].bincount().tolist() == [3, 3, 1]
    assert set(two.tolist()) < set(three.tolist())
    assert sorted(experiment.subset(labels, None, seed=3).tolist()) == [0, 1, 3, 4, 5, 6, 7, 9]
    others = [experiment.subset(labels, 2, seed).tolist() for seed in range(5)]
    assert any(other != two.tolist() for other in others)


def real_and_draws() -> tuple[SampleSet, Dataset]:
    """Real images whose pixels are 10 times their label, and draws whose pixels are 100 more."""
    real = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    drawn = torch.arange(90) % 3
    images, others = (
        (10 * labels + offset).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
        for labels, offset in ((real, 0), (drawn, 100))
    )
    return SampleSet(images, real), data.make("draws", others, drawn, ("a", "b", "c"))


@pytest.mark.parametrize(("kind", "real", "drawn"), [("real", 64, 0), ("both", 32, 32), ("draws", 0, 64)])
def test_a_batch_has_real_images_draws_or_half_of_each(kind: str, real: int, drawn: int) -> None:
    x, labels = next(experiment.batches(KINDS[kind], *real_and_draws(), seed=0))
    values = ((x[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert (int((values < 100).sum()), int((values >= 100).sum())) == (real, drawn)
    assert torch.equal(values % 100, 10 * labels)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_as_frequent_in_every_kind_as_among_the_real_images(kind: str) -> None:
    batches = experiment.batches(KINDS[kind], *real_and_draws(), seed=0)
    labels = torch.cat([next(batches)[1] for _ in range(8)])
    assert len(labels) == 8 * BATCH
    assert (labels.bincount() / len(labels)).tolist() == [0.75, 0.125, 0.125]


def test_only_augmented_kinds_change_their_images() -> None:
    for kind in KINDS:
        x = next(experiment.batches(KINDS[kind], *real_and_draws(), seed=0))[0]
        assert bool((x == x[:, :, :1, :1]).all()) != KINDS[kind].augmented


def test_a_run_learns_what_the_draws_show_and_repeats_to_the_bit(splits: dict[str, Dataset]) -> None:
    train, test = splits["train"], splits["test"]
    right = shapes(90, 5)
    wrong = data.make("draws", right.images, (right.labels + 1) % 3, right.classes)
    run = Run("draws", None, seed=0, updates=40)
    first, again, misled = (experiment.train_and_test(run, train, test, drawn) for drawn in (right, right, wrong))
    assert first == again
    assert first > 0.9
    assert misled < 0.1


def test_a_result_is_kept_under_everything_that_decides_it(splits: dict[str, Dataset]) -> None:
    train, test = splits["train"], splits["test"]
    one, other = shapes(90, 5), shapes(90, 6)
    run = Run("both", 2, 0)
    changed = [dataclasses.replace(run, **{name: 5}) for name in ("per_label", "seed", "updates")]
    keys = [experiment.key(each, train, test, one) for each in (run, *changed)]
    keys += [experiment.key(run, train, test, other), experiment.key(run, other, test, one)]
    assert len(set(keys)) == len(keys)
    real = Run("real", 2, 0)
    assert experiment.key(real, train, test, one) == experiment.key(real, train, test, other)


def test_the_sentences_say_for_each_size_whether_draws_help() -> None:
    small, large, alone = results.sentences(numbers())
    assert small == (
        "With 10 real images of each label, draws of `m` help (52.00 % becomes 82.33 %: +30.33 ± 1.43 points); "
        "beside augmentation, they help (62.00 % becomes 83.33 %: +21.33 ± 1.43 points)."
    )
    assert "draws of `m` do not help (91.00 % becomes 91.17 %: +0.17 ±" in large
    assert "points, which includes zero); beside augmentation, they do not help, but harm (96.00 %" in large
    assert "−4.83 ±" in large
    assert alone == "Draws alone reach 80.00 ± 2.48 %, all 120 real images 91.00 ± 2.48 %."


def test_the_table_has_a_row_for_each_kind_and_a_column_for_each_size() -> None:
    head, _, *rows = results.table(numbers()).splitlines()
    assert head == "| trained on | 10 of each label | all 120 |"
    assert rows[0] == "| real images | 52.00 ± 4.97 | 91.00 ± 2.48 |"
    assert rows[-1] == "| draws alone | 80.00 ± 2.48 | 80.00 ± 2.48 |"
    assert len(rows) == len(KINDS)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(numbers().to_json())
    assert results.read(tmp_path / "m.json") == numbers()


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_the_picture_shows_any_accuracy(value: float) -> None:
    accuracy = {kind: [[value] * 3 for _ in sizes] for kind, sizes in numbers().accuracy.items()}
    with Image.open(io.BytesIO(picture.draw(dataclasses.replace(numbers(), accuracy=accuracy)))) as image:
        assert (image.format, image.size) == ("PNG", (900, 550))


def test_the_command_writes_results_and_a_picture_and_says_whether_draws_help(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["usefulness", "shapes", *FLAGS]) == 0
    out = capsys.readouterr().out
    found = results.read(project / "runs" / "usefulness" / "shapes.json")
    assert (found.model, found.data, found.draws, found.seeds) == ("shapes", "shapes", 90, (0, 1))
    assert (found.train_images, found.test_images) == (102, 60)
    assert (found.per_label, found.images) == ((2, None), (6, 102))
    assert {kind: len(sizes) for kind, sizes in found.accuracy.items()} == {
        kind: 2 if KINDS[kind].real else 1 for kind in KINDS
    }
    assert "500 of each label: left out, since no label has more than" in out
    assert f"{CLASSIFIERS} of {CLASSIFIERS}: draws alone, seed 1" in out
    for line in results.sentences(found):
        assert line in out
    assert (project / "runs" / "usefulness" / "shapes.png").read_bytes() == picture.draw(found)


def test_an_interrupted_command_goes_on_and_ends_with_the_same_bytes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> Iterator[tuple[Any, Any]]:
        for done, result in enumerate(inline(*arguments)):
            yield result
            if done == 1:
                raise KeyboardInterrupt

    output = project / "runs" / "usefulness" / "shapes.json"
    assert main(["usefulness", "shapes", *FLAGS]) == 0
    straight = output.read_bytes()
    for folder in ("usefulness", "draws"):
        (project / "runs" / folder).rename(project / folder)
    monkeypatch.setattr(pool, "completed", interrupted)
    for _ in range(2):  # after the draws, and after two classifiers
        with pytest.raises(KeyboardInterrupt):
            main(["usefulness", "shapes", *FLAGS])
        assert not output.exists()
    monkeypatch.setattr(pool, "completed", inline)
    capsys.readouterr()
    assert main(["usefulness", "shapes", *FLAGS]) == 0
    assert f"{CLASSIFIERS} classifiers, of which 2 are trained already" in capsys.readouterr().out
    assert output.read_bytes() == straight
    assert main(["usefulness", "shapes", *FLAGS]) == 0
    assert f"{CLASSIFIERS} classifiers, of which {CLASSIFIERS} are trained already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["plain"], "plain takes no label"),
        (["nothing"], "not a weights directory"),
        (["shapes", "--draws", "2"], "--draws: use at least 3"),
        (["shapes", "--per-label", "0"], "--per-label: use at least 1"),
        (["shapes", "--updates", "0"], "--updates: use at least 1"),
        (["shapes", "--seeds", "4"], "--seeds: use at least 2"),
        (["shapes", "--seeds", "4", "4"], "--seeds: use at least 2 different ones"),
        (["shapes", "--seeds", "-1", "4"], "--seeds: use 0 or more"),
        (["shapes", "--output", "file/below"], "file/below"),
    ],
)
def test_wrong_input_is_a_one_line_error(
    project: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").write_text("")
    assert main(["usefulness", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_draws_are_kept_and_are_those_of_the_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Weights(project / "weights")
    few = draws.draw(source, "shapes", 70)
    assert "shapes: 128 draws in" in capsys.readouterr().out
    more = draws.draw(source, "shapes", 130)
    assert "shapes: 64 draws in" in capsys.readouterr().out
    expected = source.sample("shapes", draws.SEED, 130)
    assert torch.equal(more.images, expected.images)
    assert torch.equal(more.requested_labels, expected.requested_labels)
    assert torch.equal(few.images, more.images[:70])
    assert draws.draw(source, "plain", 10).requested_labels is None


def test_other_weights_of_the_same_name_have_other_draws(project: Path) -> None:
    source = Weights(project / "weights")
    before = draws.draw(source, "shapes", 10).images
    family, manifest = store.load(project / "weights" / "shapes")
    family.fit(to_unit(shapes(120, 8).images), shapes(120, 8).labels)
    store.save(project / "weights" / "shapes", family.for_sampling(), manifest, b"")
    assert not torch.equal(draws.draw(source, "shapes", 10).images, before)


def test_tasks_run_in_other_processes_with_one_thread_each() -> None:
    assert dict(completed(torch.get_num_threads, {"one": (), "two": ()})) == {"one": 1, "two": 1}


@pytest.mark.usefixtures("project")
def test_a_killed_process_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProcessKilled) as raised:
        dict(completed(os._exit, {"killed": (9,)}))

    def killed(*_: Any) -> None:
        raise raised.value

    monkeypatch.setattr(pool, "completed", killed)
    assert main(["usefulness", "shapes", *FLAGS]) == 1
    error = capsys.readouterr().err
    assert error == "error: a process was killed, most often for lack of memory; run the command again\n"


def test_the_page_has_the_table_the_sentences_and_the_picture_of_every_model(tmp_path: Path) -> None:
    folder = tmp_path / "usefulness"
    assert docs.usefulness_section(folder) == ""
    folder.mkdir()
    for name in ("m", "b"):
        (folder / f"{name}.json").write_bytes(dataclasses.replace(numbers(), model=name).to_json())
    text = docs.usefulness_section(folder)
    assert text.index("`b` on shapes") < text.index("(usefulness/b.png)") < text.index("`m` on shapes")
    assert results.table(numbers()) in text
    for sentence in results.sentences(numbers()):
        assert f"- {sentence}" in text
    assert "with 90 draws, 3 updates of 64 images for every classifier, 3 seeds" in text


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "training",
            "usefulness",
            "digits",
            "--weights",
            str(digits_weights(tmp_path)),
            "--draws",
            "100",
        ],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("1 of "):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to every process
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert list((tmp_path / "runs" / "usefulness" / "runs").glob("*.json"))


def digits_weights(root: Path) -> Path:
    """A directory with weights `digits` for scikit-learn's digits."""
    train = data.load("digits", None, "train")
    family = GMM(GMMConfig(code=8, most=2), (1, 8, 8), 10)
    family.fit(to_unit(train.images), train.labels)
    dataset = {"name": "digits", "digest": train.digest, "images": len(train.images)}
    store.save(
        root / "weights" / "digits",
        family.for_sampling(),
        dataclasses.replace(manifest_of(family), dataset=dataset),
        b"",
    )
    return root / "weights"
