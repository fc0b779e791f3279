"""Samples drawn as they are served, and what the bench makes of them."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import noise
from models.base import Family, Range, Rows
from models.store import Manifest
from training import data, evaluate, judge
from training.evaluate import Bench, Drawn


@dataclasses.dataclass(frozen=True)
class NoConfig:
    pass


class Shade(Family):
    """Draws its label as a shade of grey, 20 a class, and 1 to 4 on top for the steps it took."""

    Config = NoConfig
    conditional = True
    steps = Range(1, 4, 2)

    def start(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        grey = (20 * label.argmax(1)).float()
        return grey.view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def step(self, rows: Rows) -> Tensor:
        return rows.state + 1

    def decode(self, state: Tensor) -> Tensor:
        return state / 127.5 - 1


class Static(Family):
    """Draws uncorrelated noise."""

    Config = NoConfig

    def start(self, seed: Tensor, index: Tensor, label: Tensor, link: Tensor) -> Tensor:
        return noise.normal(seed, index, torch.zeros_like(seed), (1, 28, 28))

    def step(self, rows: Rows) -> Tensor:
        return rows.state


def card(**defaults: Any) -> Manifest:
    return Manifest("x", {}, (1, 28, 28), (), defaults, {}, {}, {}, "", "")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The digits of scikit-learn, seen by a net that learned a little of them.

    An untrained one sees almost the same in every image, so that any distance would pass for none.
    """
    train, test = data.load("digits"), data.load("digits", split="test")
    return Bench(judge.Judge("brief", judge.train("select", train, epochs=2), 0.0, ""), train, test)


def test_digits_are_asked_for_in_turn_with_the_defaults_of_the_manifest() -> None:
    drawn = evaluate.sample(Shade(NoConfig()), card(steps=3), seed=0, count=130)
    assert drawn.asked is not None
    assert drawn.asked.tolist() == [i % 10 for i in range(130)]
    assert drawn.images.dtype == torch.uint8
    assert drawn.images.shape == (130, 1, 28, 28)
    assert drawn.images[:, 0, 0, 0].tolist() == [20 * (i % 10) + 3 for i in range(130)]


def test_a_manifest_without_defaults_gets_those_of_the_family() -> None:
    assert int(evaluate.sample(Shade(NoConfig()), card(), seed=0, count=1).images.max()) == 2


def test_what_is_asked_wins_over_the_manifest() -> None:
    assert int(evaluate.sample(Shade(NoConfig()), card(steps=3), seed=0, count=1, steps=4).images.max()) == 4


def test_a_family_without_labels_is_asked_for_none() -> None:
    assert evaluate.sample(Static(NoConfig()), card(), seed=0, count=3).asked is None


def test_fewer_samples_of_a_seed_are_the_first_of_more() -> None:
    few, more = (evaluate.sample(Static(NoConfig()), card(), seed=5, count=n).images for n in (70, 130))
    assert torch.equal(few, more[:70])


def test_the_test_split_against_itself_is_perfect(bench: Bench) -> None:
    figures = bench.measure(Drawn(bench.test.images, bench.test.labels))
    assert figures["mnist_cnn_fd"] == pytest.approx(0, abs=1e-6)
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["nearest_training_ratio"] == pytest.approx(1)


def test_copied_training_images_show_as_memorised(bench: Bench) -> None:
    copied = bench.measure(Drawn(bench.train.images[:200], None))
    assert copied["nearest_training_ratio"] == pytest.approx(0, abs=1e-2)


def test_noise_is_farther_off_than_noisy_images_and_those_than_real_ones(bench: Bench) -> None:
    static = evaluate.sample(Static(NoConfig()), card(), seed=0, count=300)
    spread = 60 * torch.randn(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noisy = (bench.train.images[:300] + spread).clamp(0, 255).to(torch.uint8)
    far, between, near = bench.measure(static), bench.measure(Drawn(noisy, None)), bench.floor(300)
    assert far["mnist_cnn_fd"] > between["mnist_cnn_fd"] > near["mnist_cnn_fd"]
    assert far["coverage"] <= between["coverage"] < near["coverage"]


def test_accuracy_is_counted_digit_by_digit(bench: Bench) -> None:
    images = bench.test.images[:100]
    judged = bench.judge.look(images)[1].argmax(1)
    asked = torch.arange(100) % 10
    figures = bench.measure(Drawn(images, asked))
    by_digit = [float((judged[asked == digit] == digit).double().mean()) for digit in range(10)]
    assert figures["accuracy_by_digit"] == by_digit
    assert figures["worst_digit"] == min(by_digit)
    assert figures["accuracy"] == pytest.approx(sum(by_digit) / 10)


def test_several_seeds_give_the_mean_and_students_interval() -> None:
    found = evaluate.over_seeds(lambda seed: {"fd": float(seed), "by_digit": [seed, 2.0 * seed]}, [1, 2, 3])
    assert found["fd"] == 2
    assert found["by_digit"] == [2, 4]
    assert found["interval"] == {"fd": pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)}


def test_one_seed_gives_no_interval() -> None:
    assert "interval" not in evaluate.over_seeds(lambda seed: {"fd": float(seed)}, [1])
