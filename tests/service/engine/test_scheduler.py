"""Who rides: policy without tensors, clock or threads."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import WEIGHTS, Priority, Scheduler, fair_split

WANTED = st.lists(st.integers(1, 200), min_size=1, max_size=30)


def ride(scheduler: Scheduler[str]) -> dict[str, list[int]]:
    """One pick, as the rows of each request."""
    choice = scheduler.schedule()
    assert choice is not None
    rows: dict[str, list[int]] = {}
    for request, row in choice[1]:
        rows.setdefault(request, []).append(row)
    return rows


@given(wanted=WANTED, seats=st.integers(1, 300))
def test_no_seat_stays_empty_while_a_row_waits_and_none_is_given_twice(wanted: list[int], seats: int) -> None:
    given_ = fair_split(wanted, seats)
    assert sum(given_) == min(seats, sum(wanted[:seats]))
    assert all(0 < got <= asked for got, asked in zip(given_, wanted, strict=False))


@given(wanted=WANTED, seats=st.integers(1, 300))
def test_nobody_gets_two_seats_more_than_one_who_wants_more(wanted: list[int], seats: int) -> None:
    given_ = fair_split(wanted, seats)
    for got, asked in zip(given_, wanted, strict=False):
        if got < asked:
            assert max(given_) <= got + 1


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=12), seats=st.integers(1, 16))
def test_everybody_is_done_in_as_few_picks_as_the_seats_allow(counts: list[int], seats: int) -> None:
    scheduler: Scheduler[str] = Scheduler({"m": seats})
    for i, count in enumerate(counts):
        scheduler.add("m", f"r{i}", count)
    picks, seen = 0, set()
    while (choice := scheduler.schedule()) is not None:
        picks += 1
        assert len(choice[1]) <= seats
        for request, row in choice[1]:
            assert (request, row) not in seen
            seen.add((request, row))
            scheduler.finish(request, row)
    assert len(seen) == sum(counts)
    assert picks == -(-sum(counts) // seats)


def test_a_small_request_rides_with_the_very_next_step_beside_a_large_one() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    scheduler.add("m", "large", 1000)
    assert ride(scheduler) == {"large": list(range(8))}
    scheduler.add("m", "small", 1)
    assert ride(scheduler) == {"large": list(range(7)), "small": [0]}


def test_more_requests_than_seats_take_turns() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 2})
    for name in "abcd":
        scheduler.add("m", name, 5)
    assert [sorted(ride(scheduler)) for _ in range(4)] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]


def test_a_row_that_started_rides_before_its_request_s_next_one() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 2})
    scheduler.add("m", "r", 4)
    assert ride(scheduler) == {"r": [0, 1]}
    scheduler.finish("r", 0)
    assert ride(scheduler) == {"r": [1, 2]}


def test_models_share_the_device_by_time_and_not_by_turns() -> None:
    scheduler: Scheduler[str] = Scheduler({"slow": 4, "quick": 4})
    scheduler.add("slow", "a", 100)
    scheduler.add("quick", "b", 100)
    seconds, used = {"slow": 1.0, "quick": 0.1}, {"slow": 0.0, "quick": 0.0}
    for _ in range(110):
        choice = scheduler.schedule()
        assert choice is not None
        scheduler.charge(seconds[choice[0]])
        used[choice[0]] += seconds[choice[0]]
    assert used["slow"] == pytest.approx(used["quick"], abs=1.0)


def test_a_model_that_was_idle_has_saved_nothing_up() -> None:
    scheduler: Scheduler[str] = Scheduler({"busy": 4, "idle": 4})
    scheduler.add("busy", "a", 100)
    for _ in range(50):
        scheduler.schedule()
        scheduler.charge(1.0)
    scheduler.add("idle", "b", 100)
    turns = []
    for _ in range(10):
        choice = scheduler.schedule()
        assert choice is not None
        turns.append(choice[0])
        scheduler.charge(1.0)
    assert turns[0] == "idle"
    assert 4 <= turns.count("busy") <= 6


def test_who_leaves_takes_no_seat_and_may_leave_twice() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 4})
    scheduler.add("m", "a", 3)
    scheduler.add("m", "b", 1)
    scheduler.remove("a")
    scheduler.remove("a")
    assert ride(scheduler) == {"b": [0]}
    scheduler.finish("b", 0)
    assert scheduler.schedule() is None


def test_owners_share_a_model_s_seats_however_many_requests_they_have() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    for i in range(10):
        scheduler.add("m", f"many{i}", 5, owner="many")
    scheduler.add("m", "one", 50, owner="one")
    for _ in range(4):
        rows = ride(scheduler)
        assert len(rows["one"]) == 4


def test_interactive_work_has_its_weight_of_the_device_while_bulk_waits() -> None:
    scheduler: Scheduler[str] = Scheduler({"a": 4, "b": 4})
    scheduler.add("a", "bulk", 10**6, "bulk")
    scheduler.add("b", "interactive", 10**6, "interactive")
    turns: Counter[str] = Counter()
    for _ in range(900):
        choice = scheduler.schedule()
        assert choice is not None
        turns[choice[0]] += 1
        scheduler.charge(0.5)
    assert turns["b"] / turns["a"] == pytest.approx(WEIGHTS["interactive"] / WEIGHTS["bulk"], rel=0.05)


def test_bulk_work_has_all_of_the_device_when_nobody_else_waits_and_the_seats_that_others_leave() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    scheduler.add("m", "bulk", 100, "bulk")
    assert ride(scheduler) == {"bulk": list(range(8))}
    scheduler.charge(1.0)
    scheduler.add("m", "quick", 2, "interactive")
    assert ride(scheduler) == {"quick": [0, 1], "bulk": list(range(6))}


@dataclass(eq=False)
class Job:
    """A simulated request: rows that each need `steps` links."""

    model: str
    rows: int
    steps: int
    priority: Priority
    owner: str
    came: float
    turn: int
    """How many picks there had been."""


class Simulation:
    """A device whose step takes `seconds[model]`, and jobs that come at random."""

    def __init__(self, seconds: dict[str, float], seats: int) -> None:
        self.seconds, self.seats = seconds, seats
        self.scheduler: Scheduler[Job] = Scheduler(dict.fromkeys(seconds, seats))
        self.clock, self.turns = 0.0, 0
        self.left: dict[tuple[Job, int], int] = {}
        self.waiting: Counter[str] = Counter()
        """Rows that wait, by model."""
        self.done: list[tuple[Job, float, int]] = []
        """Jobs, the seconds they were there, and the picks."""

    def come(self, model: str, rows: int, steps: int, priority: Priority, owner: str = "") -> None:
        job = Job(model, rows, steps, priority, owner, self.clock, self.turns)
        self.scheduler.add(model, job, rows, priority, owner)
        self.left |= {(job, row): steps for row in range(rows)}
        self.waiting[model] += rows

    def turn(self) -> bool:
        """One pick, with every promise about it checked."""
        choice = self.scheduler.schedule()
        if choice is None:
            assert not self.left, "somebody waits and is not picked"
            return False
        model, riders = choice
        assert len(riders) == len(set(riders)) == min(self.seats, self.waiting[model]), (
            "a seat is empty, or dealt twice"
        )
        self.turns += 1
        self.clock += self.seconds[model]
        self.scheduler.charge(self.seconds[model])
        for job, row in riders:
            assert job.model == model
            self.left[job, row] -= 1
            if not self.left[job, row]:
                del self.left[job, row]
                self.waiting[model] -= 1
                self.scheduler.finish(job, row)
                job.rows -= 1
                if not job.rows:
                    self.done.append((job, self.clock - job.came, self.turns - job.turn))
        return True


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), seats=st.sampled_from([1, 4, 16, 64]), load=st.floats(0.2, 3.0))
def test_over_thousands_of_steps_nothing_is_lost_nobody_starves_and_no_seat_is_empty(
    seed: int, seats: int, load: float
) -> None:
    chance = random.Random(seed)
    simulation = Simulation({"gan": 0.02, "unet": 1.0, "vae": 0.05}, seats)
    came = 0
    for _ in range(3000):
        if chance.random() < load / 3:
            model = chance.choice(["gan", "unet", "vae"])
            steps = chance.choice([1, 5, 20]) if model == "unet" else 1
            priority: Priority = chance.choice(["interactive", "bulk"])
            simulation.come(model, chance.choice([1, 1, 1, 8, 40]), steps, priority, chance.choice("abc"))
            came += 1
        simulation.turn()
    while simulation.turn():
        pass
    assert len(simulation.done) == came
    assert not simulation.scheduler.lane_of
    assert not any(lane.owners for lanes in simulation.scheduler.lanes.values() for lane in lanes.values())


def test_a_single_image_beside_saturating_bulk_diffusion_is_there_within_three_steps() -> None:
    chance = random.Random(0)
    simulation = Simulation({"gan": 0.05, "unet": 1.0}, seats=64)
    for _ in range(50):
        simulation.come("unet", 64, 20, "bulk", "bulk")
    for _ in range(2000):
        if chance.random() < 0.1:
            simulation.come("gan", 1, 1, "interactive")
        simulation.turn()
        if not simulation.waiting["unet"]:
            simulation.come("unet", 64, 20, "bulk", "bulk")
    waits = sorted(turns for job, _, turns in simulation.done if job.model == "gan")
    assert len(waits) > 100
    assert waits[int(0.99 * len(waits))] <= 3
    bulk = [job for job, _, _ in simulation.done if job.priority == "bulk"]
    assert len(bulk) > 20, "and bulk work goes on"
