"""The scheduler: fairness, priorities and full batches, without tensors, clock or threads."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.scheduler import WEIGHTS, Priority, Scheduler, fair_split

WANTED = st.lists(st.integers(1, 200), min_size=1, max_size=30)


def next_rows(scheduler: Scheduler[str]) -> dict[str, list[int]]:
    """The rows of the next step, by request."""
    batch = scheduler.schedule()
    assert batch is not None
    rows: dict[str, list[int]] = {}
    for request, row in batch[1]:
        rows.setdefault(request, []).append(row)
    return rows


@given(wanted=WANTED, slots=st.integers(1, 300))
def test_fair_split_deals_every_slot_that_is_wanted(wanted: list[int], slots: int) -> None:
    split = fair_split(wanted, slots)
    assert sum(split) == min(slots, sum(wanted[:slots]))
    assert all(0 < got <= limit for got, limit in zip(split, wanted, strict=False))


@given(wanted=WANTED, slots=st.integers(1, 300))
def test_fair_split_differs_by_at_most_one_slot_from_unsatisfied_entries(wanted: list[int], slots: int) -> None:
    split = fair_split(wanted, slots)
    for got, limit in zip(split, wanted, strict=False):
        if got < limit:
            assert max(split) <= got + 1


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=12), slots=st.integers(1, 16))
def test_single_step_rows_finish_in_the_fewest_possible_steps(counts: list[int], slots: int) -> None:
    scheduler: Scheduler[str] = Scheduler({"m": slots})
    for i, count in enumerate(counts):
        scheduler.add("m", f"r{i}", count)
    steps, finished = 0, set()
    while (batch := scheduler.schedule()) is not None:
        steps += 1
        assert len(batch[1]) <= slots
        for request, row in batch[1]:
            assert (request, row) not in finished
            finished.add((request, row))
            scheduler.finish(request, row)
    assert len(finished) == sum(counts)
    assert steps == -(-sum(counts) // slots)


def test_a_small_request_beside_a_large_one_is_in_the_next_step() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    scheduler.add("m", "large", 1000)
    assert next_rows(scheduler) == {"large": list(range(8))}
    scheduler.add("m", "small", 1)
    assert next_rows(scheduler) == {"large": list(range(7)), "small": [0]}


def test_more_requests_than_slots_take_turns() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 2})
    for name in "abcd":
        scheduler.add("m", name, 5)
    assert [sorted(next_rows(scheduler)) for _ in range(4)] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]


def test_a_started_row_precedes_the_next_row_of_its_request() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 2})
    scheduler.add("m", "r", 4)
    assert next_rows(scheduler) == {"r": [0, 1]}
    scheduler.finish("r", 0)
    assert next_rows(scheduler) == {"r": [1, 2]}


def test_models_share_device_time_instead_of_steps() -> None:
    scheduler: Scheduler[str] = Scheduler({"slow": 4, "fast": 4})
    scheduler.add("slow", "a", 100)
    scheduler.add("fast", "b", 100)
    seconds, used = {"slow": 1.0, "fast": 0.1}, {"slow": 0.0, "fast": 0.0}
    for _ in range(110):
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.charge(seconds[batch[0]])
        used[batch[0]] += seconds[batch[0]]
    assert used["slow"] == pytest.approx(used["fast"], abs=1.0)


def test_an_idle_model_accrues_no_credit() -> None:
    scheduler: Scheduler[str] = Scheduler({"busy": 4, "idle": 4})
    scheduler.add("busy", "a", 100)
    for _ in range(50):
        scheduler.schedule()
        scheduler.charge(1.0)
    scheduler.add("idle", "b", 100)
    models = []
    for _ in range(10):
        batch = scheduler.schedule()
        assert batch is not None
        models.append(batch[0])
        scheduler.charge(1.0)
    assert models[0] == "idle"
    assert 4 <= models.count("busy") <= 6


def test_a_removed_request_gets_no_slots_and_can_be_removed_again() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 4})
    scheduler.add("m", "a", 3)
    scheduler.add("m", "b", 1)
    scheduler.remove("a")
    scheduler.remove("a")
    assert next_rows(scheduler) == {"b": [0]}
    scheduler.finish("b", 0)
    assert scheduler.schedule() is None


def test_owners_share_slots_equally_for_any_number_of_requests() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    for i in range(10):
        scheduler.add("m", f"many{i}", 5, owner="many")
    scheduler.add("m", "one", 50, owner="one")
    for _ in range(4):
        rows = next_rows(scheduler)
        assert len(rows["one"]) == 4


def test_interactive_requests_get_their_weight_of_the_device_while_bulk_waits() -> None:
    scheduler: Scheduler[str] = Scheduler({"a": 4, "b": 4})
    scheduler.add("a", "bulk", 10**4, "bulk")
    scheduler.add("b", "interactive", 10**4, "interactive")
    steps: Counter[str] = Counter()
    for _ in range(900):
        batch = scheduler.schedule()
        assert batch is not None
        steps[batch[0]] += 1
        scheduler.charge(0.5)
    assert steps["b"] / steps["a"] == pytest.approx(WEIGHTS["interactive"] / WEIGHTS["bulk"], rel=0.05)


def test_bulk_requests_get_the_whole_device_when_alone_and_free_slots_otherwise() -> None:
    scheduler: Scheduler[str] = Scheduler({"m": 8})
    scheduler.add("m", "bulk", 100, "bulk")
    assert next_rows(scheduler) == {"bulk": list(range(8))}
    scheduler.charge(1.0)
    scheduler.add("m", "interactive", 2, "interactive")
    assert next_rows(scheduler) == {"interactive": [0, 1], "bulk": list(range(6))}


@dataclass(eq=False)
class Job:
    """A simulated request: rows that need `steps` steps each."""

    model: str
    rows: int
    steps: int
    priority: Priority
    owner: str
    arrived_at: float
    first_step: int
    """The number of device steps before it arrived."""


class Simulation:
    """A device with steps of `seconds[model]` seconds and batches of `slots` rows."""

    def __init__(self, seconds: dict[str, float], slots: int) -> None:
        self.seconds, self.slots = seconds, slots
        self.scheduler: Scheduler[Job] = Scheduler(dict.fromkeys(seconds, slots))
        self.clock, self.steps = 0.0, 0
        self.remaining: dict[tuple[Job, int], int] = {}
        """The remaining steps of each row."""
        self.waiting: Counter[str] = Counter()
        """The number of unfinished rows, by model."""
        self.finished: list[tuple[Job, float, int]] = []
        """Finished jobs, each with its seconds and its device steps from arrival to end."""

    def add(self, model: str, rows: int, steps: int, priority: Priority, owner: str = "") -> None:
        job = Job(model, rows, steps, priority, owner, self.clock, self.steps)
        self.scheduler.add(model, job, rows, priority, owner)
        self.remaining |= {(job, row): steps for row in range(rows)}
        self.waiting[model] += rows

    def step(self) -> bool:
        """Run one device step and check the scheduler's guarantees."""
        batch = self.scheduler.schedule()
        if batch is None:
            assert not self.remaining, "a row waits and is not scheduled"
            return False
        model, rows = batch
        full = min(self.slots, self.waiting[model])
        assert len(rows) == len(set(rows)) == full, "a slot is empty, or a row has two slots"
        self.steps += 1
        self.clock += self.seconds[model]
        self.scheduler.charge(self.seconds[model])
        for job, row in rows:
            assert job.model == model
            self.remaining[job, row] -= 1
            if not self.remaining[job, row]:
                del self.remaining[job, row]
                self.waiting[model] -= 1
                self.scheduler.finish(job, row)
                job.rows -= 1
                if not job.rows:
                    self.finished.append((job, self.clock - job.arrived_at, self.steps - job.first_step))
        return True


def check_random_load(steps: int, seed: int, slots: int, load: float) -> None:
    """Every job of a random load finishes, and the scheduler is empty at the end."""
    chance = random.Random(seed)
    simulation = Simulation({"gan": 0.02, "unet": 1.0, "vae": 0.05}, slots)
    jobs = 0
    for _ in range(steps):
        if chance.random() < load / 3:
            model = chance.choice(["gan", "unet", "vae"])
            chain = chance.choice([1, 5, 20]) if model == "unet" else 1
            priority: Priority = chance.choice(["interactive", "bulk"])
            simulation.add(model, chance.choice([1, 1, 1, 8, 40]), chain, priority, chance.choice("abc"))
            jobs += 1
        simulation.step()
    while simulation.step():
        pass
    assert len(simulation.finished) == jobs
    assert not simulation.scheduler.lane_of
    assert not any(lane.owners for lanes in simulation.scheduler.lanes.values() for lane in lanes.values())


LOADS = {"seed": st.integers(0, 2**32), "slots": st.sampled_from([1, 4, 16, 64]), "load": st.floats(0.2, 3.0)}


@settings(max_examples=10, deadline=None)
@given(**LOADS)
def test_every_job_of_a_random_load_finishes(seed: int, slots: int, load: float) -> None:
    check_random_load(300, seed, slots, load)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(**LOADS)
def test_every_job_of_a_long_random_load_finishes(seed: int, slots: int, load: float) -> None:
    check_random_load(3000, seed, slots, load)


def test_a_single_image_beside_saturating_bulk_diffusion_finishes_within_three_steps() -> None:
    chance = random.Random(0)
    simulation = Simulation({"gan": 0.05, "unet": 1.0}, slots=64)
    for _ in range(50):
        simulation.add("unet", 64, 20, "bulk", "bulk")
    for _ in range(2000):
        if chance.random() < 0.1:
            simulation.add("gan", 1, 1, "interactive")
        simulation.step()
        if not simulation.waiting["unet"]:
            simulation.add("unet", 64, 20, "bulk", "bulk")
    waits = sorted(steps for job, _, steps in simulation.finished if job.model == "gan")
    assert len(waits) > 100
    assert waits[int(0.99 * len(waits))] <= 3
    bulk = [job for job, _, _ in simulation.finished if job.priority == "bulk"]
    assert len(bulk) > 20, "bulk requests starve"
