"""Parquet files as Hugging Face's datasets write them are data sets."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training import data
from training.data import DataError, Options

FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ice cream", "pizza", "soup"]}}


def png(grey: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, grey).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    greys: range,
    labels: list[Any] | None = None,
    features: dict[str, Any] | None = None,
    column: str = "image",
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns: dict[str, Any] = {"id": [str(grey) for grey in greys]}
    columns[column] = [{"bytes": png(grey), "path": f"{grey}.png"} for grey in greys]
    if labels is not None:
        columns["label"] = labels
    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)


def test_pictures_and_class_labels_are_read(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", range(10, 14), [1, 0, None, 1], FEATURES)
    dataset = data.load(str(tmp_path / "x.parquet"))
    assert dataset.images[:, 0, 4, 4].tolist() == [10, 11, 12, 13]
    assert dataset.labels.tolist() == [1, 0, -1, 1]
    assert dataset.classes == ("ice cream", "pizza", "soup")
    assert dataset.name == "x.parquet"


def test_the_reading_options_apply(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", range(100), list(range(100)))
    options = Options(size=(16, 12), channels=3, held_out=0.3)
    train, test = (data.load(str(tmp_path / "x.parquet"), split=split, options=options) for split in ("train", "test"))
    assert train.images.shape[1:] == (3, 16, 12)
    assert sorted([*train.labels.tolist(), *test.labels.tolist()]) == list(range(100))
    with pytest.raises(DataError, match="no test images; --held-out"):
        data.load(str(tmp_path / "x.parquet"), split="test")


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        (None, [-1, -1, -1], ()),
        ([2, 0, 1], [2, 0, 1], ("0", "1", "2")),
        (["b", "10", "2"], [2, 1, 0], ("2", "10", "b")),
        ([-1, -1, -1], [-1, -1, -1], ()),
    ],
)
def test_labels_need_no_metadata(
    labels: list[Any] | None, expected: list[int], classes: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "x.parquet", range(3), labels, column="img")
    dataset = data.load(str(tmp_path / "x.parquet"))
    assert dataset.labels.tolist() == expected
    assert dataset.classes == classes


@pytest.mark.parametrize("folder", ["", "data"])
def test_files_of_a_folder_are_splits_by_their_names(folder: str, tmp_path: Path) -> None:
    for number in range(2):
        greys = range(10 * number, 10 * number + 3)
        write(tmp_path / folder / f"train-0000{number}-of-00002.parquet", greys, [0, 1, 2], FEATURES)
    write(tmp_path / folder / "validation-00000-of-00001.parquet", range(200, 202), [0, 1], FEATURES)
    train, test = (data.load(str(tmp_path), split=split) for split in ("train", "test"))
    assert train.images[:, 0, 4, 4].tolist() == [0, 1, 2, 10, 11, 12]
    assert test.images[:, 0, 4, 4].tolist() == [200, 201]
    write(tmp_path / folder / "test-00000-of-00001.parquet", range(220, 221), [0], FEATURES)
    assert data.load(str(tmp_path), split="test").images[:, 0, 4, 4].tolist() == [220]


def test_files_without_pictures_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="is not readable as parquet") as caught:
        data.load(str(tmp_path / "x.parquet"))
    assert "\n" not in str(caught.value)
    write(tmp_path / "x.parquet", range(0))
    with pytest.raises(DataError, match="has no pictures"):
        data.load(str(tmp_path / "x.parquet"))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_text("")
    with pytest.raises(DataError, match=r"pip install '\.\[parquet\]'"):
        data.load(str(tmp_path / "x.parquet"))
