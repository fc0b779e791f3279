"""Counts, conditions and parts of data sets."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from drawbridge.commands import classroom
from drawbridge.dataset import DatasetError, conditions, counts
from drawbridge.dataset.parts import PART_SIZE, ClassParts, ImpossibleClass, Part, Parts, read_verdicts

ORDER = [0, 1, 1, 0, 3, 0, 3, 3, 3]


@pytest.mark.parametrize(
    ("total", "weights", "spread"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [4, 0, 8], [2, 0, 5]),
        (1, [1, 1000], [0, 1]),
        (100_000, [1] * 9, [11_112, *[11_111] * 8]),
    ],
)
def test_a_total_is_spread_by_the_largest_remainders(total: int, weights: list[int], spread: list[int]) -> None:
    assert counts.spread(total, weights) == spread


def test_every_class_with_images_has_a_test_image() -> None:
    assert counts.of_test_split([6000, 6, 1, 0], Fraction(1, 6)) == [1000, 1, 1, 0]
    assert counts.of_test_split([100], Fraction(0)) == [0]


def test_the_order_of_labels_stays_the_same_in_all_versions() -> None:
    assert counts.shuffled_labels([3, 2, 0, 4], seed=5, split=0).tolist() == ORDER
    assert counts.shuffled_labels([3, 2, 0, 4], seed=5, split=1).tolist() != ORDER
    assert sorted(counts.shuffled_labels([3, 2, 0, 4], seed=2**63 - 1, split=0)) == sorted(ORDER)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("confidence>=0.9", "confidence>=0.9"),
        ("  confidence  >  .5 ", "confidence>0.5"),
        ("confidence>=0.50 and margin>-0.2 and confidence<1", "confidence>=0.5 and margin>-0.2 and confidence<1"),
        ("margin<=-1", "margin<=-1"),
    ],
)
def test_conditions_are_a_quantity_an_operator_and_a_number(text: str, same: str) -> None:
    assert " and ".join(map(str, conditions.parse(text))) == same


@pytest.mark.parametrize(
    "text",
    [
        "", "confidence", "confidence>=", ">=0.9", "confidence=0.9", "confidence==0.9", "trust>=0.9", "confidence>=0,9",
        "confidence>=0.9 or margin>0", "confidence>=0.9 and", "confidence>=0.9margin>0", "0.5<confidence<0.9",
        "confidence>=nan", "confidence>=1e-1", "Confidence>=0.9",
    ],
)  # fmt: skip
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="use conditions such as"):
        conditions.parse(text)


@pytest.mark.parametrize("text", ["confidence>1", "confidence>=1.01", "confidence<0", "margin<-1", "margin>=90"])
def test_a_threshold_that_no_image_reaches_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="no image has"):
        conditions.parse(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("confidence>=0.5", [True, True]),
        ("confidence>0.5", [False, True]),
        ("confidence<0.6 and margin<=0", [True, False]),
    ],
)
def test_conditions_hold_for_values_in_their_range(text: str, kept: list[bool]) -> None:
    values = {"confidence": np.array([0.5, 0.7]), "margin": np.array([0.0, 0.4])}
    assert np.logical_and.reduce([one.holds(values) for one in conditions.parse(text)]).tolist() == kept


def test_a_class_without_filters_is_drawn_to_the_image() -> None:
    one = ClassParts(3, 300, filtered=False, max_tries=1)
    parts = []
    while part := one.next_part():
        one.in_flight.add(part.number)
        parts.append(part)
    assert [(part.first, part.n) for part in parts] == [(0, 128), (128, 128), (256, 44)]
    assert parts[1].first_image == 3 * 2**32 + 128
    for part in reversed(parts):
        assert not one.is_filled
        one.add(part.number, part.n)
    assert one.is_filled


def test_a_filtered_class_draws_as_many_parts_as_the_share_of_kept_images_suggests() -> None:
    one = ClassParts(0, 200, filtered=True, max_tries=10)
    first = one.next_part()
    assert first == Part(0, 0, 0, 128)
    one.add(0, 32)  # a quarter: 168 more images take 672 draws
    numbers = []
    while part := one.next_part():
        one.in_flight.add(part.number)
        numbers.append(part.number)
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_a_part_that_was_lost_is_drawn_before_later_ones_count() -> None:
    one = ClassParts(0, 200, filtered=True, max_tries=10)
    for number in (0, 2, 3):
        one.add(number, 100)
    assert not one.is_filled
    lost = one.next_part()
    assert lost is not None
    assert lost.number == 1
    one.add(1, 100)
    assert one.is_filled
    assert one.complete == 2


def test_a_class_that_cannot_be_filled_is_given_up_at_the_same_draw_in_any_order() -> None:
    for order in (range(8), reversed(range(8))):
        one = ClassParts(4, 500, filtered=True, max_tries=50)
        *first, last = order
        for number in first:
            one.add(number, 2)
        with pytest.raises(ImpossibleClass) as error:
            one.add(last, 2)
        assert (error.value.label, error.value.kept, error.value.drawn) == (4, 16, 1024)


def test_a_class_with_just_enough_kept_images_is_not_given_up() -> None:
    one = ClassParts(0, 24, filtered=True, max_tries=50)
    for number in range(64):
        one.add(number, 1)
    assert one.is_filled


def saved(folder: Path, wanted: int, verdicts: list[list[int]]) -> Parts:
    """A data set of one class with parts whose images have the value of their number."""
    parts = Parts(folder, [wanted], filtered=True, max_tries=100)
    parts.begin({})
    for number, of_part in enumerate(verdicts):
        part = parts.classes[0].part(number)
        images = np.arange(part.first, part.first + part.n, dtype=np.uint8)[:, None, None] * np.ones((2, 2), np.uint8)
        array = np.array(of_part + [1] * (part.n - len(of_part)), np.uint8)
        parts.save(part, array, images)
        parts.add(part, array)
    return parts


def test_the_images_are_the_first_that_are_kept_and_drops_count_until_then(tmp_path: Path) -> None:
    parts = saved(tmp_path / "p", 4, [[0, 1, 2, 0], [], [2, 0, 0, 0, 1]])
    assert parts.finished
    assert parts.dropped(0, 2) == (35, [29, 2])
    images = [int(image[0, 0]) for image in parts.images(np.zeros(4, np.int64), [0])]
    assert images == [0, 3, 33, 34]
    assert [int(image[0, 0]) for image in parts.images(np.zeros(2, np.int64), [2])] == [33, 34]


def test_a_damaged_part_is_drawn_again(tmp_path: Path) -> None:
    parts = saved(tmp_path / "p", 4, [[0, 0], [0, 0]])
    parts.close()
    path = tmp_path / "p" / "00000-0000001.part"
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], whole + b"x", b"\0" * len(whole)):
        path.write_bytes(damaged)
        assert read_verdicts(path) is None
        again = Parts(tmp_path / "p", [4], filtered=True, max_tries=100)
        again.begin({})
        assert not again.finished
        assert again.take() == again.classes[0].part(1)
        again.close()
    assert parts.finished


def test_a_part_is_what_the_strictest_service_takes() -> None:
    assert int(classroom.DEFAULTS["max_images"]) >= PART_SIZE
