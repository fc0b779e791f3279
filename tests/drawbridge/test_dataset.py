"""`drawbridge dataset`: counts, splits, order, cards, and what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drawbridge.cli import main
from drawbridge.client import Client
from drawbridge.dataset.parts import IMAGES_PER_CLASS, Parts
from harness.server import Server
from models.locks import locked
from tests.conftest import CLASSES
from training import data

Expected = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images_of(expected: Expected, label: int, first: int, n: int, **query: object) -> np.ndarray:
    """Images of one class as a data set of seed 0 has them."""
    return expected(**{"seed": 0, **query}, label=label, first=label * IMAGES_PER_CLASS + first, n=n)


def test_image_j_of_a_class_is_one_that_the_service_gives_again(server: Server, expected: Expected) -> None:
    assert main(["dataset", "cgan", "--per-label", "5", "--seed", "3", "--url", server.url, "-o", "x.npz"]) == 0
    with np.load("x.npz") as archive:
        for label in range(10):
            images = archive["images"][archive["labels"] == label]
            assert np.array_equal(images, images_of(expected, label, 0, 5, model="cgan", seed=3))


def test_labels_are_mixed_in_an_order_that_only_the_seed_decides(server: Server) -> None:
    arguments = ["dataset", "cgan", "--per-label", "20", "--url", server.url]
    for seed, output in ((0, "a.npz"), (0, "b.npz"), (1, "c.npz")):
        assert main([*arguments, "--seed", str(seed), "-o", output]) == 0
    a, c = (np.load(output)["labels"] for output in ("a.npz", "c.npz"))
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    assert sorted(a) == sorted(c)
    assert not np.array_equal(a, c)
    assert len({*a[:20].tolist()}) > 5


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        (["--count", "3=6", "--count", "7=1"], {3: 6, 7: 1}),
        (["--per-label", "2", "--count", "3=0", "--count", "7=5"], {**dict.fromkeys(range(10), 2), 3: 0, 7: 5}),
        (["--total", "23"], {**dict.fromkeys(range(10), 2), 0: 3, 1: 3, 2: 3}),
    ],
)
def test_every_class_gets_the_count_that_the_flags_say(
    flags: list[str], counts: dict[int, int], server: Server
) -> None:
    assert main(["dataset", "cgan", *flags, "--url", server.url, "-o", "x.npz"]) == 0
    found = np.bincount(np.load("x.npz")["labels"], minlength=10).tolist()
    assert found == [counts.get(label, 0) for label in range(10)]


def test_a_label_is_a_name_in_any_case_or_a_number(named_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--count", "PIZZA=1", "--count", "1=2", "--count", "Zebra=3", "--url", named_server.url]
    assert main(["dataset", "pictures", *flags, "-o", "x.npz"]) == 0
    archive = np.load("x.npz")
    assert np.bincount(archive["labels"], minlength=5).tolist() == [1, 2, 0, 3, 0]
    assert main(["dataset", "pictures", "--count", "soup=1", *flags, "-o", "y.npz"]) == 2
    assert "--count: label: pictures has no class 'soup'; its classes are: pizza" in capsys.readouterr().err
    assert main(["dataset", "drawings", "--count", "none=1", "--url", named_server.url, "-o", "y.npz"]) == 2
    assert "'none' is no class of drawings" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npz", "idx", "parquet", "folder"])
def test_like_has_the_counts_of_another_set_or_its_proportions(kind: str, server: Server) -> None:
    flags = {"npz": [], "idx": ["--format", "idx"], "parquet": [], "folder": []}[kind]
    other = {"npz": "o.npz", "parquet": "o.parquet"}.get(kind, "other")
    counts = ["--count", "1=4", "--count", "8=8"]
    assert main(["dataset", "cgan", *counts, *flags, "--url", server.url, "-o", other]) == 0
    assert main(["dataset", "cgan", "--like", other, "--url", server.url, "-o", "same.npz"]) == 0
    assert np.bincount(np.load("same.npz")["labels"]).tolist() == [0, 4, 0, 0, 0, 0, 0, 0, 8]
    assert main(["dataset", "cgan", "--like", other, "--total", "7", "--url", server.url, "-o", "seven.npz"]) == 0
    assert np.bincount(np.load("seven.npz")["labels"]).tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 5]


def test_like_refuses_a_set_with_classes_that_the_model_lacks(
    server: Server, named_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "pictures", "--per-label", "1", "--url", named_server.url, "-o", "meals"]) == 0
    assert main(["dataset", "cgan", "--like", "meals", "--url", server.url, "-o", "x.npz"]) == 2
    assert "--like: label: cgan has no class" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["x.npz", "png", "idx", "parquet"])
def test_the_test_split_has_further_images_in_every_format(output: str, server: Server, expected: Expected) -> None:
    flags = [] if output == "x.npz" else ["--format", output]
    arguments = ["dataset", "cgan", "--count", "2=10", "--count", "4=3", "--url", server.url, *flags, "-o", output]
    assert main([*arguments, "--test-share", "0.2"]) == 0
    for split, first, counts in (("train", 0, {2: 10, 4: 3}), ("test", None, {2: 2, 4: 1})):
        loaded = data.load(output, split=split, options=data.Options(held_out=0.0))
        for label, count in counts.items():
            number = loaded.classes.index(str(label))
            images = loaded.images[loaded.labels == number][:, 0].numpy()
            start = {2: 10, 4: 3}[label] if first is None else first
            assert np.array_equal(images, images_of(expected, label, start, count, model="cgan"))


def test_idx_has_a_sixth_as_many_test_images_as_mnist(server: Server) -> None:
    arguments = ["dataset", "cgan", "--per-label", "12", "--url", server.url, "--format", "idx", "-o", "twelve"]
    assert main(arguments) == 0
    for split, count in (("train", 12), ("test", 2)):
        assert data.load("twelve", split=split).labels.bincount().tolist() == [count] * 10


@pytest.mark.parametrize("output", ["x.npz", "X.NPZ", "png", "idx", "x.parquet", "folder of parquet"])
def test_training_reads_what_dataset_writes(output: str, server: Server, expected: Expected) -> None:
    flags = {"idx": ["--format", "idx"], "folder of parquet": ["--format", "parquet", "--shard-size", "7"]}
    arguments = ["dataset", "cgan", "--per-label", "2", "--url", server.url, "-o", output]
    assert main([*arguments, *flags.get(output, [])]) == 0
    dataset = data.load(output, options=data.Options(held_out=0))
    assert dataset.classes == tuple("0123456789")
    for label in range(10):
        images = dataset.images[dataset.labels == label][:, 0].numpy()
        assert np.array_equal(images, images_of(expected, label, 0, 2, model="cgan"))
    card = json.loads(
        Path(output, "card.json").read_text() if Path(output).is_dir() else Path(f"{output}.card.json").read_text()
    )
    if output != "png":  # a folder has the images by class, and so in another order
        assert card["sha256"]["train"] == dataset.digest


@pytest.mark.parametrize("output", ["x.npz", "folder", "x.parquet"])
def test_a_data_set_has_the_names_and_the_colours_of_its_model(output: str, named_server: Server) -> None:
    assert main(["dataset", "pictures", "--per-label", "2", "--url", named_server.url, "-o", output]) == 0
    dataset = data.load(output, options=data.Options(held_out=0))
    assert dataset.images.shape == (10, 3, 24, 32)
    # Names that differ in case alone get folders that differ also where case does not count.
    names = ("Zebra", "ice cream", "pizza", "zebra (2)", "çay") if output == "folder" else CLASSES
    assert dataset.classes == names
    with Client(named_server.url) as client:
        for number, name in enumerate(CLASSES):
            samples = client.generate("pictures", label=name, n=2, seed=0, first=number * IMAGES_PER_CLASS)
            images = dataset.images[
                dataset.labels == names.index("zebra (2)" if name == "zebra" and output == "folder" else name)
            ]
            assert np.array_equal(images.movedim(1, -1).numpy(), samples.arrays)
    if output != "folder":
        card = json.loads(Path(f"{output}.card.json").read_text())
        assert card["classes"] == list(CLASSES)
        assert card["sha256"]["train"] == dataset.digest


def test_the_card_says_where_the_images_come_from(server: Server) -> None:
    flags = ["--steps", "2", "--count", "3=4", "--test-share", "1/4", "--seed", "5", "--format", "parquet"]
    assert main(["dataset", "flow", *flags, "--url", server.url, "-o", "set"]) == 0
    card = json.loads(Path("set/card.json").read_text())
    with Client(server.url) as client:
        assert card["digest"] == client.model("flow")["digest"]
    assert (card["model"], card["family"], card["seed"], card["sampling"]["steps"]) == ("flow", "flow", 5, 2)
    assert card["command"] == (
        "drawbridge dataset flow --steps 2 --count 3=4 --test-share 1/4 --seed 5 --format parquet -o PATH"
    )
    assert card["images"] == {
        split: {str(label): count if label == 3 else 0 for label in range(10)}
        for split, count in (("train", 4), ("test", 1))
    }
    assert card["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"drawbridge", "python", "numpy", "pyarrow", "zlib"} <= card["versions"].keys()
    page = Path("set/README.md").read_text()
    assert page.startswith("---\n")
    assert "| 3 | 4 | 1 |" in page
    assert "names no source or licence of its training data, none." in page
    assert card["loading"] in page


def test_the_card_has_the_licence_and_the_known_defects_of_the_manifest() -> None:
    from drawbridge.dataset import card as data_card

    model = {
        "name": "m", "family": "f", "digest": "d", "defaults": {}, "height": 8, "width": 8, "channels": 3,
        "classes": ["a|b"],
    }  # fmt: skip
    manifest = {"dataset": {"name": "/home/me/emoji", "digest": "e"}, "attribution": "Noto, Apache", "caveat": "Blobs."}
    made = data_card.make(
        model=model, manifest=manifest, seed=0, options={}, command="c", format="webdataset", shards=3,
        counts={"train": [2]}, filters=[{"filter": "confidence>=0.9", "judge": "select", "dropped": [5]}], drawn=[7],
    )  # fmt: skip
    page = data_card.to_markdown({**made, "sha256": {"train": "s"}}, head=False)
    assert made["training_data"] == {"name": "emoji", "digest": "e"}
    assert "Source and licence of the model's training data: Noto, Apache." in page
    assert "Blobs." in page
    assert "| a\\|b | 2 | 7 | 5 |" in page
    assert "Filter: confidence>=0.9 (judge select)" in page
    assert "PATH/train-{000000..000002}.tar" in page


def test_a_data_set_with_other_settings_is_not_continued(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Parts(Path("x.npz.parts"), [1] * 10).begin({"model": "cgan"})
    assert main(["dataset", "cgan", "--per-digit", "10", "-o", "x.npz", "--url", server.url]) == 2
    assert "is of a data set with other settings" in capsys.readouterr().err


def test_two_commands_do_not_write_one_data_set(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["dataset", "cgan", "--per-digit", "1", "-o", "x.npz", "--url", server.url]
    with locked(Path("x.npz.parts")):
        assert main(arguments) == 2
    message = "another process writes into x.npz.parts; wait until it ends, or name another output"
    assert message in capsys.readouterr().err
    assert not Path("x.npz").exists()
    assert main(arguments) == 0
    assert [path.name for path in Path().glob("x.npz*") if "card" not in path.name] == ["x.npz"]


def test_idx_holds_grey_images_only(named_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--per-label", "1", "--url", named_server.url, "--format", "idx"]
    assert main(["dataset", "pictures", *arguments, "-o", "colour"]) == 2
    assert "pictures has colour images of 5; use another format" in capsys.readouterr().err
    assert not list(Path().iterdir())
    assert main(["dataset", "drawings", "--steps", "2", *arguments, "-o", "grey"]) == 0
    assert sorted(data.load("grey").labels.tolist()) == [0, 1, 2, 3, 4]


def test_an_output_that_exists_is_kept(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.npz").write_text("mine")
    assert main(["dataset", "cgan", "--per-label", "1", "--url", server.url, "-o", "x.npz"]) == 2
    assert "x.npz exists already; remove it, or name another output" in capsys.readouterr().err
    assert Path("x.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gan", "-o", "x.npz"], "gan takes no label"),
        (["nope", "-o", "x.npz"], "no model 'nope'; available models: acgan"),
        (["cgan", "--per-digit", "0", "-o", "x.npz"], "--per-label: must be at least 1"),
        (["cgan", "--total", "0", "-o", "x.npz"], "--total: must be at least 1"),
        (["cgan", "--total", "10", "--per-label", "1", "-o", "x.npz"], "--per-label: cannot be combined"),
        (["cgan", "--total", "1000000000", "-o", "x.npz"], "a data set has 1 to 100,000,000 images"),
        (["cgan", "--count", "3=0", "-o", "x.npz"], "this one would have 0"),
        (["cgan", "--count", "3", "-o", "x.npz"], "--count 3: use LABEL=N"),
        (["cgan", "--count", "3=-1", "-o", "x.npz"], "--count 3=-1: use LABEL=N"),
        (["cgan", "--like", "nothing", "-o", "x.npz"], "--like: 'nothing' is neither a data set nor"),
        (["cgan", "-o", "x.ZIP"], "x.ZIP: name a file that ends in .npz, .parquet or .tar, or a directory"),
        (["cgan", "--test-share", "2", "-o", "x"], "--test-share: use a number from 0 to 1"),
        (["cgan", "--test-share", "1/0", "-o", "x"], "--test-share: use a number from 0 to 1"),
        (["cgan", "--test-share", "0", "--format", "idx", "-o", "x"], "idx needs a test split"),
        (["cgan", "--test-share", "0.1", "-o", "x.tar"], "one file holds one split; name a directory with --format"),
        (["cgan", "--shard-size", "5", "-o", "x.parquet"], "--shard-size: is for directories"),
        (["cgan", "--shard-size", "0", "--format", "parquet", "-o", "x"], "--shard-size: must be at least 1"),
        (["cgan", "--max-tries", "5", "-o", "x"], "--max-tries: is for --keep and --no-copies"),
        (["cgan", "--data", "x", "-o", "x"], "--data: is for --no-copies"),
        (["cgan", "--data-root", "x", "-o", "x"], "--data-root: is for --no-copies and --like"),
        (["cgan", "--keep", "confidence=0.9", "-o", "x"], "--keep 'confidence=0.9': use conditions such as"),
        (["cgan", "--keep", "confidence>=0.9", "-o", "x"], "--keep: no judge of none, the data of cgan; train one"),
        (["cgan", "--no-copies", "-o", "x"], "--no-copies: 'none' is neither a data set nor a folder or file"),
        (["cgan"], "required: -o/--output"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", *arguments, "--url", server.url]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


def test_parquet_without_pyarrow_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    assert main(["dataset", "cgan", "--url", server.url, "-o", "x.parquet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: drawbridge dataset --format parquet needs the parquet extra: pip install '.[parquet]'"
    )
    assert error.count("\n") == 1
