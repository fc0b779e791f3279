"""Folders of pictures, as people have them, are data sets."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import data
from training.data import DataError, Dataset, Options, cache, reading
from training.data.dataset import Split

EVERYTHING = Options(held_out=0)


def paint(
    path: Path, color: int | Sequence[int] = 7, size: tuple[int, int] = (16, 12), mode: str | None = None
) -> Path:
    """Write a picture of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(color, int):
        Image.new(mode or "L", size, color).save(path)
    else:
        Image.new(mode or "RGB", size, tuple(color)).save(path)
    return path


def load(folder: Path, split: Split = "train", options: Options = EVERYTHING) -> Dataset:
    return data.load(str(folder), split=split, options=options)


def colors(dataset: Dataset) -> list[list[int]]:
    """The colour in the middle of each image."""
    _, _, height, width = dataset.images.shape
    return dataset.images[:, :, height // 2, width // 2].tolist()


# -- labels ------------------------------------------------------------------------------------------------------------


def test_sub_folders_become_labels(tmp_path: Path) -> None:
    for grey, name in enumerate(("cat", "dog", "dog")):
        paint(tmp_path / name / f"{grey}.png", 100 + grey)
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.images.shape == (3, 1, 12, 16)
    assert colors(dataset) == [[100], [101], [102]]


def test_a_folder_without_sub_folders_has_no_labels(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    dataset = load(tmp_path)
    assert dataset.classes == ()
    assert dataset.labels.tolist() == [-1]


def test_pictures_beside_the_sub_folders_have_no_label(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "a.png")
    paint(tmp_path / "loose.png")
    assert load(tmp_path).labels.tolist() == [0, -1]


def test_sub_folders_with_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "02", "1", "other", "1a"):
        paint(tmp_path / name / "a.png")
    assert load(tmp_path).classes == ("1", "02", "9", "10", "1a", "other")


def test_names_of_classes_have_spaces_and_any_letters(tmp_path: Path) -> None:
    for name in ("ice cream", "Größe", "пицца", "ピザ", "a.b (1)"):
        paint(tmp_path / name / "a b.PNG")
    assert set(load(tmp_path).classes) == {"ice cream", "Größe", "пицца", "ピザ", "a.b (1)"}


def test_the_class_of_a_picture_is_the_first_of_nested_folders(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "2024" / "may" / "a.png")
    assert load(tmp_path).classes == ("cat",)


def test_a_thousand_classes_are_read(tmp_path: Path) -> None:
    for number in range(1000):
        paint(tmp_path / f"c{number}" / "a.png", number % 256, (8, 8))
    dataset = load(tmp_path)
    assert len(dataset.classes) == len(set(dataset.labels.tolist())) == 1000
    lines = data.summary(dataset)
    assert lines[0].endswith("1000 images of 1x8x8, 1000 classes")
    assert lines[-1].strip() == "and 980 more classes, of 1 to 1 images each"
    assert len(lines) == 22


def test_classes_and_their_counts_are_described(tmp_path: Path) -> None:
    for name, count in (("ice cream", 2), ("pizza", 11)):
        for number in range(count):
            paint(tmp_path / name / f"{number}.png", (255, 0, 0))
    paint(tmp_path / "loose.png")
    assert data.summary(load(tmp_path)) == [
        f"data: {tmp_path.name}, 14 images of 3x12x16, 2 classes",
        "       2 ice cream",
        "      11 pizza",
        "       1 without a label",
    ]


# -- files that are passed over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png", ".hidden.png", "cat/._a.png", "cat/Thumbs.db", "cat/x.txt"],
)
def test_what_systems_leave_behind_is_passed_over(name: str, tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    paint(tmp_path / "other.png").rename(tmp_path / name)
    dataset = load(tmp_path)
    assert dataset.classes == ("cat",)
    assert len(dataset.images) == 1


def test_class_folders_and_pictures_may_be_links(tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "pictures" / "dog").mkdir(parents=True)
    (tmp_path / "pictures" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "dog" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    dataset = load(tmp_path / "pictures")
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.images) == 2


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert len(load(tmp_path).images) == 1


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        load(tmp_path)


# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING"])
@pytest.mark.parametrize("test", ["test", "Testing", "val", "VALID", "validation"])
def test_a_folder_may_contain_both_splits(train: str, test: str, tmp_path: Path) -> None:
    paint(tmp_path / train / "one" / "a.png", 10)
    paint(tmp_path / test / "one" / "a.png", 20)
    paint(tmp_path / test / "two" / "b.png", 20)
    (tmp_path / "SOURCE.txt").write_text("no picture")
    training, testing = load(tmp_path), load(tmp_path, "test")
    assert [int(part.images.max()) for part in (training, testing)] == [10, 20]
    assert training.classes == testing.classes == ("one", "two")


@pytest.mark.parametrize(
    "names", [("train", "test", "val"), ("train", "Training"), ("bus", "train"), ("test",), ("train", "test", "cat")]
)
def test_unclear_splits_are_refused(names: Sequence[str], tmp_path: Path) -> None:
    for name in names:
        paint(tmp_path / name / "a" / "a.png")
    with pytest.raises(DataError, match="unclear which are splits and which are classes; keep one folder `train`"):
        load(tmp_path)


@pytest.mark.parametrize("root", ["", "train"])
def test_a_tenth_of_a_folder_without_a_test_split_is_held_out(root: str, tmp_path: Path) -> None:
    for number in range(200):
        paint(tmp_path / root / "ab"[number % 2] / f"{number}.png", number)
    parts = [load(tmp_path, split, Options()) for split in ("train", "test")]
    values = [{color for (color,) in colors(part)} for part in parts]
    assert not values[0] & values[1]
    assert len(values[0] | values[1]) == 200
    assert 8 <= len(values[1]) <= 32
    half = load(tmp_path, "test", Options(held_out=0.5))
    assert 70 <= len(half.images) <= 130


def test_pictures_stay_in_their_split_when_others_are_added(tmp_path: Path) -> None:
    for number in range(0, 200, 2):
        paint(tmp_path / f"{number}.png", number)
    before = {color for (color,) in colors(load(tmp_path, "test", Options()))}
    for number in range(1, 200, 2):
        paint(tmp_path / f"{number}.png", number)
    after = {color for (color,) in colors(load(tmp_path, "test", Options()))}
    assert {color for color in after if color % 2 == 0} == before


@pytest.mark.parametrize("name", [f"{number}.png" for number in range(30)])
def test_a_single_picture_is_never_held_out(name: str, tmp_path: Path) -> None:
    paint(tmp_path / name)
    assert len(load(tmp_path, options=Options()).images) == 1
    with pytest.raises(DataError, match="no test images"):
        load(tmp_path, "test", Options())


# -- size and colour ---------------------------------------------------------------------------------------------------


def test_pictures_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", size=(16, 16))
    paint(tmp_path / "b.png", size=(32, 16))
    with pytest.raises(DataError, match=r"several sizes \(16x16, 16x32 b.png\); give --size"):
        load(tmp_path)
    assert load(tmp_path, options=Options(size=(24, 20))).images.shape[1:] == (1, 24, 20)


def test_pictures_of_a_size_that_networks_do_not_take_need_a_size(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", size=(30, 30))
    with pytest.raises(
        DataError, match="its images are 30x30; give --size N or --size HxW, multiples of 4 from 8 to 128"
    ):
        load(tmp_path)


def test_a_folder_is_grey_if_all_of_its_pictures_are(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 50)
    paint(tmp_path / "b.png", (60, 60, 60))
    assert colors(load(tmp_path)) == [[50], [60]]
    paint(tmp_path / "c.png", (70, 80, 90))
    assert colors(load(tmp_path)) == [[50, 50, 50], [60, 60, 60], [70, 80, 90]]


def test_the_number_of_channels_can_be_given(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 50)
    paint(tmp_path / "b.png", (255, 0, 0))
    assert colors(load(tmp_path, options=Options(channels=1, held_out=0))) == [[50], [76]]
    (tmp_path / "b.png").unlink()
    assert colors(load(tmp_path, options=Options(channels=3, held_out=0))) == [[50, 50, 50]]


def test_both_splits_have_the_same_channels(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a.png", 50)
    paint(tmp_path / "test" / "a.png", (255, 0, 0))
    assert load(tmp_path).images.shape == (1, 3, 12, 16)


def test_resize_and_background_are_applied(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (0, 0, 255, 0), mode="RGBA", size=(16, 8))
    image = load(tmp_path, options=Options(size=(16, 16), background="#010203")).images[0]
    assert image[:, 8, 8].tolist() == [1, 2, 3]
    paint(tmp_path / "a.png", (9, 8, 7), size=(16, 8))
    image = load(tmp_path, options=Options(size=(16, 16), resize="pad", background="#010203")).images[0]
    assert [image[:, row, 8].tolist() for row in (0, 8, 15)] == [[1, 2, 3], [9, 8, 7], [1, 2, 3]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (30, 32)}, "--size: use multiples of 4 from 8 to 128; it is 30x32"),
        ({"size": (4, 4)}, "--size"),
        ({"size": (132, 132)}, "--size"),
        ({"channels": 2}, "--channels: use 1"),
        ({"resize": "bend"}, "--resize: use crop, pad, stretch"),
        ({"background": "nothing"}, "--background: 'nothing' is not a colour"),
        ({"held_out": 1.0}, "--held-out"),
        ({"held_out": -0.1}, "--held-out"),
    ],
)
def test_options_that_are_not_allowed_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Options(**values)  # type: ignore[arg-type]


def test_options_are_kept_as_json() -> None:
    assert Options().to_json() == {}
    options = Options(size=(32, 48), channels=3, resize="pad", background="black", held_out=0.2, skip_unreadable=True)
    assert Options.from_json(options.to_json()) == options


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("48x64", (48, 64)), ("48X64", (48, 64))])
def test_a_size_is_a_side_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert data.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "32x", "30", "-32", "32x32x3", "4", "256"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="--size: use"):
        data.parse_size(text)


# -- unreadable files --------------------------------------------------------------------------------------------------


def test_unreadable_files_are_reported_together(tmp_path: Path) -> None:
    paint(tmp_path / "z.png")
    for number in range(7):
        (tmp_path / f"{number}.png").write_text("no picture")
    (tmp_path / "broken.png").symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"8 of 9 pictures cannot be read \(0.png: the file is not a readable"
    ) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "4.png" in message
    assert "5.png" not in message
    assert "; and 3 more); repair or remove them, or leave them out with --skip-unreadable" in message
    assert "\n" not in message


def test_unreadable_files_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for grey, name in enumerate("abc"):
        paint(tmp_path / name / "x.png", grey)
    data_ = (tmp_path / "b" / "x.png").read_bytes()
    (tmp_path / "b" / "x.png").write_bytes(data_[: len(data_) // 2])
    for _ in range(2):  # decoded, and from the cache
        dataset = load(tmp_path, options=Options(held_out=0, skip_unreadable=True))
        assert dataset.classes == ("a", "c")
        assert colors(dataset) == [[0], [2]]
        assert "1 of 3 pictures cannot be read (b/x.png: the file is " in capsys.readouterr().err
    with pytest.raises(DataError, match="--skip-unreadable"):
        load(tmp_path)


def test_a_folder_without_readable_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for options in (Options(), Options(size=(8, 8)), Options(size=(8, 8), skip_unreadable=True)):
        with pytest.raises(DataError, match=r"pictures can(not)? be read"):
            load(tmp_path, options=options)


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures."""
    for number in range(4):
        paint(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", 10 * number)
    return tmp_path / "pictures"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sources that were decoded."""
    sources: list[object] = []
    original = reading.decode

    def decode(source: Path, **options: object) -> object:
        sources.append(source)
        return original(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "decode", decode)
    return sources


SIZED = Options(size=(8, 8), held_out=0)


def test_pictures_are_decoded_once(pictures: Path, decoded: list[object]) -> None:
    first = load(pictures, options=SIZED)
    assert len(decoded) == 4
    assert load(pictures, options=SIZED).digest == first.digest
    assert len(load(pictures, options=Options(size=(8, 8), held_out=0.5)).images) < 4, "the split is not part of it"
    assert len(decoded) == 4


@pytest.mark.parametrize(
    "options", [Options(size=(12, 8)), Options(size=(8, 8), channels=3), Options(size=(8, 8), resize="pad")]
)
def test_other_options_decode_again(options: Options, pictures: Path, decoded: list[object]) -> None:
    load(pictures, options=SIZED)
    load(pictures, options=options)
    assert len(decoded) == 8


def test_changed_files_are_decoded_again(pictures: Path, decoded: list[object]) -> None:
    load(pictures, options=SIZED)
    paint(pictures / "a" / "0.png", 99)
    assert colors(load(pictures, options=SIZED))[0] == [99]
    shutil.copytree(pictures, pictures.with_name("copy"))
    load(pictures.with_name("copy"), options=SIZED)
    assert len(decoded) == 12


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:0], lambda b: b[:600] + b"damage" + b[606:]])
def test_a_damaged_entry_is_decoded_again(
    damage: Callable[[bytes], bytes], pictures: Path, cache_home: Path, decoded: list[object]
) -> None:
    first = load(pictures, options=Options(size=(32, 32)))
    (entry,) = (cache_home / "drawbridge" / "pictures").iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert load(pictures, options=Options(size=(32, 32))).digest == first.digest
    assert len(decoded) == 8


def test_the_least_recently_used_entries_make_room(
    pictures: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 60_000)
    for side in (32, 36, 40, 44, 48, 52, 56, 60):
        load(pictures, options=Options(size=(side, side), channels=3))
        files = list((cache_home / "drawbridge" / "pictures").iterdir())
        assert sum(file.stat().st_size for file in files) <= 62_000
    assert files


def test_a_cache_that_cannot_be_written_changes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(pictures, options=SIZED).digest == load(pictures, options=SIZED).digest


def test_the_digest_of_a_folder_is_of_its_pixels_and_labels(pictures: Path) -> None:
    pixels = np.repeat(np.array([0, 20, 10, 30], np.uint8), 64).reshape(4, 1, 8, 8)
    expected = data.make("x", torch.from_numpy(pixels), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    assert load(pictures, options=SIZED).digest == expected.digest


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["a", "b", "a"], "several classes are called 'a'"), (["a", "", "b"], "a class has no name")],
)
def test_classes_that_names_cannot_tell_apart_are_refused(classes: list[str], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.arange(3), classes=np.array(classes))
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / "x.npz"))
