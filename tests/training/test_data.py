"""Data sets, and the sampler that orders them for training."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from drawbridge.dataset import _write_idx
from models.pixels import to_uint8, to_unit
from training import data
from training.data import DataError, InfiniteSampler


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (14, 14), grey).save(path)


def test_every_byte_converts_to_the_unit_interval_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert (float(to_unit(every).min()), float(to_unit(every).max())) == (-1, 1)


def test_the_splits_of_digits_are_disjoint_and_hold_all_1797() -> None:
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    assert len(train.images) + len(test.images) == 1797
    assert not {i.numpy().tobytes() for i in train.images} & {i.numpy().tobytes() for i in test.images}


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_28x28_grey_images_with_all_labels(split: str) -> None:
    digits = data.load("digits", split=split)
    assert digits.images.dtype == torch.uint8
    assert digits.images.shape[1:] == (1, 28, 28)
    assert digits.images.max() > 200
    assert digits.labels.dtype == torch.int64
    assert set(digits.labels.tolist()) == set(range(10))
    assert digits.classes == tuple("0123456789")


def test_digits_load_identically_every_time() -> None:
    assert data.load("digits").digest == data.load("digits").digest


def test_the_digest_covers_pixels_and_labels() -> None:
    images, labels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([3, 4])
    expected = hashlib.sha256(images.numpy().tobytes() + np.array([3, 4], dtype=np.int64).tobytes()).hexdigest()
    assert data.make("x", images, labels, ()).digest == expected
    assert data.make("x", images, labels.flip(0), ()).digest != expected
    assert data.make("x", images + 1, labels, ()).digest != expected


def test_sub_folders_become_labels(tmp_path: Path) -> None:
    for grey, name in enumerate(("cat", "dog", "dog")):
        paint(tmp_path / name / f"{grey}.png", 100 + grey)
    dataset = data.load(str(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.images.shape == (3, 1, 28, 28)
    assert dataset.images[:, 0, 14, 14].tolist() == [100, 101, 102]


def test_a_folder_without_sub_folders_has_no_labels(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 7)
    dataset = data.load(str(tmp_path))
    assert dataset.classes == ()
    assert dataset.labels.tolist() == [-1]


def test_sub_folders_with_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "02", "1", "other", "1a"):
        paint(tmp_path / name / "a.png", 7)
    assert data.load(str(tmp_path)).classes == ("1", "02", "9", "10", "1a", "other")


def test_a_folder_may_contain_both_splits(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "one" / "a.png", 10)
    paint(tmp_path / "test" / "one" / "a.png", 20)
    paint(tmp_path / "test" / "two" / "b.png", 20)
    train, test = data.load(str(tmp_path), split="train"), data.load(str(tmp_path), split="test")
    assert [int(part.images.max()) for part in (train, test)] == [10, 20]
    assert train.classes == test.classes == ("one", "two")


def test_a_folder_without_a_test_folder_has_no_test_split(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 7)
    with pytest.raises(DataError, match="no test images"):
        data.load(str(tmp_path), split="test")


def test_the_error_for_an_unreadable_image_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        data.load(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        data.load(str(tmp_path))


IMAGES = np.arange(12 * 28 * 28).reshape(12, 28, 28).astype(np.uint8)
LABELS = np.arange(12) % 10


@pytest.mark.parametrize("name", ["x.npz", "X.NPZ"])
@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.uint8), LABELS.astype(">i8"), None])
def test_an_npz_is_a_data_set(name: str, labels: np.ndarray | None, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        np.savez(file, images=IMAGES, **({} if labels is None else {"labels": labels}))
    dataset = data.load(str(tmp_path / name))
    assert np.array_equal(dataset.images[:, 0], IMAGES)
    assert dataset.labels.tolist() == ([-1] * 12 if labels is None else LABELS.tolist())
    assert dataset.classes == (() if labels is None else tuple("0123456789"))
    with pytest.raises(DataError, match="no test images"):
        data.load(str(tmp_path / name), split="test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(float), "labels": LABELS}, "they are float64"),
        ({"images": IMAGES[:, :14]}, r"they are uint8 \[12, 14, 28\]"),
        ({"images": IMAGES[:0]}, r"they are uint8 \[0, 28, 28\]"),
        ({"images": np.uint8(7)}, "array `images`"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "labels must be 12 whole numbers"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels must be 12 whole numbers"),
        ({"images": IMAGES, "labels": LABELS - 2}, "labels must be 12 whole numbers"),
        ({"images": IMAGES.astype(object)}, "array `images`"),
        ({"x_train": IMAGES}, "array `images`"),
    ],
)
def test_the_error_for_unfit_arrays_names_the_file(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=rf"x\.npz.*{message}"):
        data.load(str(tmp_path / "x.npz"))


def test_the_error_for_another_or_a_damaged_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_text("1,2,3")
    with pytest.raises(DataError, match=r"x\.npz is neither a folder nor an npz"):
        data.load(str(file))
    np.savez_compressed(file, images=IMAGES)
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz is not an npz"):
        data.load(str(file))


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    _write_idx(tmp_path, IMAGES[:10], LABELS[:10])
    _write_idx(tmp_path, IMAGES[10:], LABELS[10:], "t10k")
    return tmp_path


@pytest.mark.parametrize("folder", ["", "MNIST", "MNIST/raw"])
def test_a_folder_of_idx_files_is_the_data_set_that_torchvision_reads(folder: str, idx: Path) -> None:
    for split in ("train", "test"):
        dataset, same = data.load(str(idx / folder), split=split), data.load("mnist", idx, split)
        assert dataset.digest == same.digest
    assert len(dataset.images) == 2


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0\0\x08\x03" + bytes(300), b"\0\0\x0d\x03" + bytes(12)])
def test_the_error_for_damaged_idx_files_names_the_file_or_the_folder(content: bytes, idx: Path) -> None:
    (idx / "MNIST/raw/train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not a readable idx file"):
        data.load(str(idx))
    with pytest.raises(DataError, match=f"mnist can neither be read from {idx}"):
        data.load("mnist", idx)


@pytest.mark.parametrize("name", ["MNIST", "Mnist", "mnist"])
def test_names_are_known_in_upper_and_lower_case(name: str, idx: Path) -> None:
    dataset = data.load(name, idx)
    assert (dataset.name, len(dataset.images)) == ("mnist", 10)


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion_mnist", "Fashion-MNIST", "FashionMNIST", "fashion mnist"])
def test_names_are_known_with_and_without_dashes(name: str, idx: Path) -> None:
    (idx / "MNIST").rename(idx / "FashionMNIST")
    assert data.load(name, idx).name == "fashion-mnist"


def test_a_path_comes_before_another_spelling_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "Digits" / "a.png", 7)
    paint(tmp_path / "digits" / "a.png", 7)
    assert (len(data.load("Digits").images), len(data.load("DIGITS").images)) == (1, 1497)
    assert len(data.load("digits").images) == 1497


def test_the_error_for_an_unknown_data_set_lists_all_names() -> None:
    with pytest.raises(DataError, match="mnist, fashion-mnist, kmnist, digits"):
        data.load("emnist-of-nowhere")


def test_the_error_for_a_failed_download_names_both_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A port without a listener stands for a machine without network.
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"Connection refused\); .*DRAWBRIDGE_DATA.*digits"):
        data.load("mnist", tmp_path)


def test_mnist_has_its_published_counts(mnist_root: Path) -> None:
    train, test = (data.load("mnist", mnist_root, split) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (60_000, 10_000)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(train.images.float().mean()) / 255 == pytest.approx(0.1307, abs=1e-4)


sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=50)
@given(size=sizes, batch=st.integers(1, 60), seed=st.integers(0, 1000))
def test_every_batch_is_full_and_every_epoch_visits_every_image_once(size: int, batch: int, seed: int) -> None:
    batches = InfiniteSampler(size, batch, seed)
    seen = torch.cat([next(batches) for _ in range(-(-3 * size // batch))])
    assert len(seen) % batch == 0
    for epoch in seen[: 3 * size].view(3, size):
        assert epoch.sort().values.tolist() == list(range(size))


@settings(deadline=None, max_examples=50)
@given(size=sizes, batch=st.integers(1, 60), seed=st.integers(0, 1000), before=st.integers(0, 9))
def test_the_order_continues_from_a_saved_state(size: int, batch: int, seed: int, before: int) -> None:
    first, second = InfiniteSampler(size, batch, seed), InfiniteSampler(size, batch, seed)
    for _ in range(before):
        next(first)
    second.load_state_dict(first.state_dict())
    assert [next(second).tolist() for _ in range(5)] == [next(first).tolist() for _ in range(5)]


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    one = next(InfiniteSampler(100, 250, seed=3))
    torch.manual_seed(2)
    assert torch.equal(next(InfiniteSampler(100, 250, seed=3)), one)
    assert not torch.equal(next(InfiniteSampler(100, 250, seed=4)), one)
    assert not torch.equal(one[:100], one[100:200])


def test_the_order_does_not_use_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(InfiniteSampler(100, 10, seed=3))
    assert torch.equal(torch.rand(3), expected)
