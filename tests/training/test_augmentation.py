"""Augmentation of the training images."""

import pytest
import torch

from training.augmentation import Augmentation

IMAGES = torch.arange(40 * 3 * 8 * 12).reshape(40, 3, 8, 12).to(torch.uint8)


def test_flip_mirrors_about_half_of_the_images() -> None:
    flipped = Augmentation(flip=True)(IMAGES, seed=0, images_seen=40)
    same = sum(torch.equal(new, old) for new, old in zip(flipped, IMAGES, strict=True))
    mirrored = sum(torch.equal(new, old.flip(-1)) for new, old in zip(flipped, IMAGES, strict=True))
    assert same + mirrored == 40
    assert 8 <= same <= 32


def test_shift_moves_images_and_repeats_the_border() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 4, 4], image[..., 0] = 255, 9
    shifted = Augmentation(shift=2)(image.expand(200, -1, -1, -1), seed=0, images_seen=200)
    places = {tuple(place.tolist()) for place in (shifted[:, 0] == 255).nonzero()[:, 1:]}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    assert all(set(row.tolist()) <= {0, 9, 255} for row in shifted[:, 0].flatten(1))
    right = shifted[(shifted[:, 0, :, 6] == 255).any(1)]
    assert (right[:, 0, :, :3] == 9).all()


def test_it_is_a_pure_function_of_the_seed_and_the_progress() -> None:
    augment = Augmentation(flip=True, shift=3)
    torch.manual_seed(0)
    expected = augment(IMAGES, seed=1, images_seen=80)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(IMAGES, seed=1, images_seen=80), expected)
    for seed, seen in ((1, 120), (2, 80)):
        assert not torch.equal(augment(IMAGES, seed=seed, images_seen=seen), expected)


def test_processes_that_share_a_batch_transform_it_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augmentation(flip=True, shift=3)
    whole = augment(IMAGES, seed=1, images_seen=80)
    monkeypatch.setattr("models.parallel.size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("models.parallel.rank", lambda rank=rank: rank)
        assert torch.equal(augment(IMAGES[rank::2], seed=1, images_seen=80), whole[rank::2])


def test_nothing_is_recorded_of_what_is_off() -> None:
    assert Augmentation().to_json() == {}
    assert Augmentation(flip=True).to_json() == {"flip": True}
    assert Augmentation(shift=2).to_json() == {"shift": 2}
