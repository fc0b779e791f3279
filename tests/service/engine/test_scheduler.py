"""Who rides: policy without tensors, clock or threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.scheduler import Scheduler, share

WANTED = st.lists(st.integers(1, 200), min_size=1, max_size=30)


def ride(scheduler: Scheduler[str]) -> dict[str, list[int]]:
    """One pick, as the rows of each request."""
    choice = scheduler.pick()
    assert choice is not None
    rows: dict[str, list[int]] = {}
    for request, row in choice[1]:
        rows.setdefault(request, []).append(row)
    return rows


@given(wanted=WANTED, seats=st.integers(1, 300))
def test_no_seat_stays_empty_while_a_row_waits_and_none_is_given_twice(wanted: list[int], seats: int) -> None:
    given_ = share(wanted, seats)
    assert sum(given_) == min(seats, sum(wanted[:seats]))
    assert all(0 < got <= asked for got, asked in zip(given_, wanted, strict=False))


@given(wanted=WANTED, seats=st.integers(1, 300))
def test_nobody_gets_two_seats_more_than_one_who_wants_more(wanted: list[int], seats: int) -> None:
    given_ = share(wanted, seats)
    for got, asked in zip(given_, wanted, strict=False):
        if got < asked:
            assert max(given_) <= got + 1


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=12), seats=st.integers(1, 16))
def test_everybody_is_done_in_as_few_picks_as_the_seats_allow(counts: list[int], seats: int) -> None:
    scheduler: Scheduler[str] = Scheduler(["m"], seats)
    for i, count in enumerate(counts):
        scheduler.add("m", f"r{i}", count)
    picks, seen = 0, set()
    while (choice := scheduler.pick()) is not None:
        picks += 1
        assert len(choice[1]) <= seats
        for request, row in choice[1]:
            assert (request, row) not in seen
            seen.add((request, row))
            scheduler.finish("m", request, row)
    assert len(seen) == sum(counts)
    assert picks == -(-sum(counts) // seats)


def test_a_small_request_rides_with_the_very_next_step_beside_a_large_one() -> None:
    scheduler: Scheduler[str] = Scheduler(["m"], seats=8)
    scheduler.add("m", "large", 1000)
    assert ride(scheduler) == {"large": list(range(8))}
    scheduler.add("m", "small", 1)
    assert ride(scheduler) == {"large": list(range(7)), "small": [0]}


def test_more_requests_than_seats_take_turns() -> None:
    scheduler: Scheduler[str] = Scheduler(["m"], seats=2)
    for name in "abcd":
        scheduler.add("m", name, 5)
    assert [sorted(ride(scheduler)) for _ in range(4)] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]


def test_a_row_that_started_rides_before_its_request_s_next_one() -> None:
    scheduler: Scheduler[str] = Scheduler(["m"], seats=2)
    scheduler.add("m", "r", 4)
    assert ride(scheduler) == {"r": [0, 1]}
    scheduler.finish("m", "r", 0)
    assert ride(scheduler) == {"r": [1, 2]}


def test_models_share_the_device_by_time_and_not_by_turns() -> None:
    scheduler: Scheduler[str] = Scheduler(["slow", "quick"], seats=4)
    scheduler.add("slow", "a", 100)
    scheduler.add("quick", "b", 100)
    seconds, used = {"slow": 1.0, "quick": 0.1}, {"slow": 0.0, "quick": 0.0}
    for _ in range(110):
        choice = scheduler.pick()
        assert choice is not None
        scheduler.charge(choice[0], seconds[choice[0]])
        used[choice[0]] += seconds[choice[0]]
    assert used["slow"] == pytest.approx(used["quick"], abs=1.0)


def test_a_model_that_was_idle_has_saved_nothing_up() -> None:
    scheduler: Scheduler[str] = Scheduler(["busy", "idle"], seats=4)
    scheduler.add("busy", "a", 100)
    for _ in range(50):
        scheduler.pick()
        scheduler.charge("busy", 1.0)
    scheduler.add("idle", "b", 100)
    turns = []
    for _ in range(10):
        choice = scheduler.pick()
        assert choice is not None
        turns.append(choice[0])
        scheduler.charge(choice[0], 1.0)
    assert turns[0] == "idle"
    assert 4 <= turns.count("busy") <= 6


def test_who_leaves_takes_no_seat_and_may_leave_twice() -> None:
    scheduler: Scheduler[str] = Scheduler(["m"], seats=4)
    scheduler.add("m", "a", 3)
    scheduler.add("m", "b", 1)
    scheduler.remove("m", "a")
    scheduler.remove("m", "a")
    assert ride(scheduler) == {"b": [0]}
    scheduler.finish("m", "b", 0)
    assert scheduler.pick() is None
