"""Randomness is a pure function of (seed, image index, step)."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models import noise


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # The known answers that the authors of Philox publish with the Random123 library.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_philox_gives_the_published_answers(kind, counter, key, words):
    inputs = (np.array(part, np.uint64)[:, None, None] for part in (counter, key))
    if kind == "tensor":  # as on a GPU
        inputs = (torch.from_numpy(part.astype(np.int64)) for part in inputs)
    even, odd = noise.philox(*inputs)
    assert (*even.flatten().tolist(), *odd.flatten().tolist()) == (words[0], words[2], words[1], words[3])


def test_tensors_and_arrays_give_the_same_noise(monkeypatch):
    seed, index, step = (
        torch.tensor([0, 2**63 - 1, 5]),
        torch.tensor([2**40 + 3, 0, 7]),
        torch.tensor([0, 1, 2**32 - 1]),
    )
    arrays = [noise.bits(seed, index, step, 50), noise.normal(seed, index, step, (3, 5))]
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    tensors = [noise.bits(seed, index, step, 50), noise.normal(seed, index, step, (3, 5))]
    assert torch.equal(arrays[0], tensors[0])
    torch.testing.assert_close(arrays[1], tensors[1], rtol=1e-6, atol=1e-6)


def rows(count: int, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index = torch.arange(count)
    return torch.full_like(index, seed), index, torch.zeros_like(index)


def test_a_row_has_the_same_noise_alone_and_in_any_batch():
    together = noise.normal(*rows(33), (5, 7))
    for i in (0, 1, 31, 32):
        alone = noise.normal(*(part[i : i + 1] for part in rows(33)), (5, 7))
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("changed", ["seed", "index", "step"])
def test_another_seed_index_or_step_gives_other_noise(changed):
    arguments = dict(
        zip(("seed", "index", "step"), (torch.tensor([3]), torch.tensor([5]), torch.tensor([2])), strict=True)
    )
    for other in (4, 2**33 + 3, 2**62) if changed != "step" else (3, 1):
        others = {**arguments, changed: torch.tensor([other])}
        a, b = noise.normal(**arguments, shape=(784,)), noise.normal(**others, shape=(784,))
        assert abs(float(torch.corrcoef(torch.cat((a, b)))[0, 1])) < 4 / math.sqrt(784)


def test_normals_are_normally_distributed():
    normals = noise.normal(*rows(2000), (50,)).flatten().double()
    assert stats.kstest(normals.numpy(), "norm").pvalue > 0.001
    assert abs(float(normals.mean())) < 4 / math.sqrt(len(normals))
    assert abs(float(normals.var()) - 1) < 4 * math.sqrt(2 / len(normals))


def test_longer_noise_starts_with_the_shorter_noise():
    assert torch.equal(noise.normal(*rows(3), (16,)), noise.normal(*rows(3), (64,))[:, :16])


def test_classes_are_uniform():
    seed, index, _ = rows(20_000)
    counts = torch.bincount(noise.classes(seed, index, 10), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001
