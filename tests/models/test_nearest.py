"""The index of training images: an exact search, and files that are damaged."""

import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import nearest
from models.directories import list_indexes, list_weights
from models.nearest import NearestError, NearestIndex

DIGEST = "0123456789abcdef" * 4


def smooth(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Images [count, C, H, W] uint8 that vary in few directions, with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
    images = (torch.rand(count, 12, generator=generator) @ patterns.flatten(1) / 6).view(count, *shape)
    return ((images + 0.05 * torch.randn(images.shape, generator=generator)) * 255).clamp(0, 255).to(torch.uint8)


def write(file: Path, images: Tensor, held_out: Tensor | None = None) -> NearestIndex:
    """Write the index of images whose labels count to 3 and again."""
    labels = torch.arange(len(images)) % 3
    held_out = torch.arange(100.0) if held_out is None else held_out
    about = {"name": "smooth", "digest": DIGEST, "classes": ("a", "b", "c"), "attribution": "by the tests"}
    file.write_bytes(nearest.build(images, labels, held_out, 1.0, **about))
    return NearestIndex(file)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """900 training images; the last one is the first again."""
    images = smooth(900, (1, 12, 16), 1)
    images[-1] = images[0]
    return images


@pytest.fixture(scope="module")
def index(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> NearestIndex:
    return write(tmp_path_factory.mktemp("index") / "smooth.nearest", images)


def by_comparison(images: Tensor, query: Tensor, count: int) -> list[tuple[int, float]]:
    """Number and distance of the images nearest to a query, from the distances of all of them."""
    differences = nearest.points(images).double() - nearest.points(query[None]).double()
    distances = differences.square().sum(1).sqrt()
    order = distances.argsort(stable=True)[:count]
    return list(zip(order.tolist(), distances[order].tolist(), strict=True))


@pytest.mark.parametrize("shape", [(1, 12, 16), (3, 40, 48), (1, 4, 8)])
def test_the_search_finds_what_a_comparison_with_all_images_finds(shape: tuple[int, ...], tmp_path: Path) -> None:
    images = smooth(700, shape, 1)
    index = write(tmp_path / "x.nearest", images)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for query in (*smooth(20, shape, 3), images[5], 255 - images[6], noise, noise * 0, noise * 0 + 255):
        found = index.search(query, 7)
        assert [(one.number, one.distance) for one in found] == by_comparison(images, query, 7)
        assert all(torch.equal(one.image, images[one.number]) for one in found)
        assert [one.label for one in found] == [one.number % 3 for one in found]


def test_a_training_image_finds_itself_at_distance_0_and_the_first_of_two_equal_ones_first(
    index: NearestIndex, images: Tensor
) -> None:
    for number in (1, 255, 256, 898):
        first, second = index.search(images[number], 2)
        assert (first.number, first.label, first.distance) == (number, number % 3, 0)
        assert second.distance > 0
    assert [(one.number, one.distance) for one in index.search(images[-1], 2)] == [(0, 0), (899, 0)]


def test_most_images_are_not_read(index: NearestIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()
    original = index.images
    monkeypatch.setattr(index, "images", lambda numbers: read.extend(numbers) or original(numbers))
    index.search(smooth(1, (1, 12, 16), 4)[0], 5)
    assert len(read) < 300


def test_of_fewer_images_than_asked_for_all_are_found(tmp_path: Path) -> None:
    images = smooth(3, (1, 8, 8), 1)
    found = write(tmp_path / "few.nearest", images).search(images[1], 10)
    assert sorted(one.number for one in found) == [0, 1, 2]


def test_threads_that_search_at_the_same_time_find_the_same(index: NearestIndex, images: Tensor) -> None:
    expected = {number: [one.number for one in index.search(images[number], 5)] for number in range(40)}
    found = dict[int, list[int]]()

    def search(numbers: range) -> None:
        found.update({number: [one.number for one in index.search(images[number], 5)] for number in numbers})

    threads = [threading.Thread(target=search, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_cancelled_search_ends(index: NearestIndex, images: Tensor) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        index.search(images[0], 5, cancelled)


def test_the_share_of_held_out_images_that_are_farther(tmp_path: Path) -> None:
    index = write(tmp_path / "x.nearest", smooth(10, (1, 8, 8), 1), torch.tensor([30.0, 10.0, 20.0, 20.0]))
    shares = {0: 1.0, 10: 0.75, 19.9: 0.75, 20: 0.25, 29: 0.25, 30: 0}
    assert {distance: index.farther_share(distance) for distance in shares} == shares


def test_the_file_is_named_by_its_data_and_is_no_model(index: NearestIndex, tmp_path: Path) -> None:
    path = nearest.path(tmp_path, "my own/pictures", DIGEST)
    assert path == tmp_path / "my-own-pictures-0123456789ab.nearest"
    path.write_bytes(index.path.read_bytes())
    (tmp_path / ".half.nearest.new").touch()
    (tmp_path / "model.nearest").mkdir()
    assert list_indexes(tmp_path) == [path]
    assert list_weights(tmp_path) == []


def test_a_damaged_file_is_refused_with_what_to_do(index: NearestIndex, tmp_path: Path) -> None:
    content, file = index.path.read_bytes(), tmp_path / "damaged.nearest"
    start = nearest._data_start(content)
    flipped = [bytearray(content) for _ in range(4)]
    for place, copy in zip(
        (start + 5, start + 8000, len(content) - 1, content.index(b"by the tests")), flipped, strict=True
    ):
        copy[place] ^= 1
    broken = [b"", b"text", content[:3], content[:-1], content[: start - 9], content + b"more", *map(bytes, flipped)]
    newer = content.replace(rb"\"format\": 1", rb"\"format\": 2")
    assert newer != content
    for damaged in (*broken, newer):
        file.write_bytes(damaged)
        with pytest.raises(NearestError, match=r"damaged.nearest is no usable index \(.+\); write it again with `draw"):
            NearestIndex(file)
    with pytest.raises(NearestError, match="format 2, this version reads 1"):
        NearestIndex(file)
    with pytest.raises(NearestError, match="No such file"):
        NearestIndex(tmp_path / "missing.nearest")


def test_a_file_that_changes_while_it_is_open_gives_no_wrong_images(images: Tensor, tmp_path: Path) -> None:
    for change in (lambda content: content[: len(content) // 2], lambda content: content[:-20000] + bytes(20000)):
        index = write(tmp_path / "x.nearest", images)
        index.path.write_bytes(change(index.path.read_bytes()))
        with pytest.raises(NearestError, match="write it again"):
            index.search(images[899], 900)
