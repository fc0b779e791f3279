"""Data sets, and the sampler that orders them for training."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from drawbridge.dataset.formats import Contents, Split, write_idx
from models.pixels import to_uint8, to_unit
from training import data
from training.data import DataError, InfiniteSampler, Options


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), grey).save(path)


def test_every_byte_converts_to_the_unit_interval_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert (float(to_unit(every).min()), float(to_unit(every).max())) == (-1, 1)


def test_the_splits_of_digits_are_disjoint_and_hold_all_1797() -> None:
    train, test = data.load("digits", split="train"), data.load("digits", split="test")
    assert len(train.images) + len(test.images) == 1797
    assert not {i.numpy().tobytes() for i in train.images} & {i.numpy().tobytes() for i in test.images}


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_8x8_grey_images_with_all_labels(split: str) -> None:
    digits = data.load("digits", split=split)
    assert digits.images.dtype == torch.uint8
    assert digits.images.shape[1:] == (1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
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
        ({"images": IMAGES[:, :, :, None].repeat(2, 3)}, r"they are uint8 \[12, 28, 28, 2\]"),
        ({"images": IMAGES[:, :14]}, r"its images are 14x28; give --size N or --size HxW"),
        (
            {"images": IMAGES, "labels": LABELS, "classes": np.array(["a"])},
            "`classes` has 1 names, but labels go up to 9",
        ),
        ({"images": IMAGES[:0]}, r"they are uint8 \[0, 28, 28\]"),
        ({"images": np.uint8(7)}, "array `images`"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "labels must be 12 whole numbers"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels must be 12 whole numbers"),
        ({"images": IMAGES, "labels": LABELS - 2}, "labels must be 12 whole numbers"),
        ({"images": IMAGES.astype(object)}, "array `images`"),
        ({"x_test": IMAGES}, "array `images`"),
    ],
)
def test_the_error_for_unfit_arrays_names_the_file(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=rf"x\.npz.*{message}"):
        data.load(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("classes", [np.array(["ice cream", "pizza"]), ["ice cream", "pizza", "unused"]])
def test_an_npz_may_be_in_colour_and_name_its_classes(classes: np.ndarray, tmp_path: Path) -> None:
    images = np.arange(4 * 8 * 12 * 3).reshape(4, 8, 12, 3).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1, -1, 1], classes=classes)
    dataset = data.load(str(tmp_path / "x.npz"))
    assert np.array_equal(dataset.images.permute(0, 2, 3, 1), images)
    assert dataset.labels.tolist() == [0, 1, -1, 1]
    assert dataset.classes == tuple(classes)
    assert dataset.name == "x.npz"


def test_a_part_of_an_npz_can_be_held_out(tmp_path: Path) -> None:
    images = np.arange(200, dtype=np.uint8).repeat(64).reshape(200, 8, 8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(200) % 3)
    options = Options(held_out=0.3)
    train, test = (data.load(str(tmp_path / "x.npz"), split=split, options=options) for split in ("train", "test"))
    values = [set(part.images[:, 0, 0, 0].tolist()) for part in (train, test)]
    assert values[0] | values[1] == set(range(200))
    assert not values[0] & values[1]
    assert 30 <= len(values[1]) <= 90
    assert train.classes == test.classes == ("0", "1", "2")


@pytest.mark.parametrize("labels", [(4,), (4, 1)])
def test_the_npz_of_keras_has_both_splits(labels: tuple[int, ...], tmp_path: Path) -> None:
    parts = {"x_train": IMAGES[:4], "y_train": LABELS[:4].reshape(labels), "x_test": IMAGES[4:6], "y_test": LABELS[4:6]}
    np.savez(tmp_path / "mnist.npz", **parts)
    train, test = (data.load(str(tmp_path / "mnist.npz"), split=split) for split in ("train", "test"))
    assert np.array_equal(train.images[:, 0], IMAGES[:4])
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [4, 5]


@pytest.mark.parametrize(("channels", "shape"), [(None, (1, 16, 12)), (3, (3, 16, 12))])
def test_arrays_come_to_the_size_and_channels_that_are_asked_for(
    channels: int | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", images=np.full((5, 30, 30), 9, np.uint8))
    options = Options(size=(16, 12), channels=channels)
    assert data.load(str(tmp_path / "x.npz"), options=options).images.shape[1:] == shape
    assert data.load("digits", options=options).images.shape[1:] == shape
    colours = np.full((5, 8, 12, 3), (255, 0, 0), np.uint8)
    np.savez(tmp_path / "x.npz", images=colours)
    grey = data.load(str(tmp_path / "x.npz"), options=Options(channels=1))
    assert grey.images.shape == (5, 1, 8, 12)
    assert set(grey.images.flatten().tolist()) == {76}
    pixels = data.load(str(tmp_path / "x.npz"), options=Options(size=(8, 8))).images
    assert pixels[0, :, 4, 4].tolist() == [255, 0, 0]


def test_cifar10_is_read_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for name, content in (("batch", {"data": rows, "labels": [3, 1]}), ("meta", {"label_names": ["a", "b", "c", "d"]})):
        (folder / name).write_bytes(pickle.dumps(content))
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("batch", "meta")}
    for split in ("train_list", "test_list"):
        monkeypatch.setattr(datasets.CIFAR10, split, [["batch", digests["batch"]]])
    meta = {"filename": "meta", "key": "label_names", "md5": digests["meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    dataset = data.load("CIFAR-10", tmp_path)
    assert np.array_equal(dataset.images, rows.reshape(2, 3, 32, 32))
    assert dataset.labels.tolist() == [3, 1]
    assert dataset.classes == ("a", "b", "c", "d")


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
    splits = [Split("train", LABELS[:10], IMAGES[:10]), Split("test", LABELS[10:], IMAGES[10:])]
    write_idx(tmp_path, Contents(splits, (), IMAGES.shape[1:]))
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
    with pytest.raises(DataError, match="mnist, fashion-mnist, kmnist, cifar10, digits"):
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
