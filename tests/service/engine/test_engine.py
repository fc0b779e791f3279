"""The engine: company changes nothing, every accepted request ends, nothing waits longer than it must."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.base import Rows
from service.engine.engine import Engine, EngineObserver
from service.engine.loops import EventLoopEngine, ThreadEngine
from service.engine.request import (
    DeadlineExceeded,
    DeadlineUnattainable,
    EngineError,
    QueueFull,
    Request,
    Sample,
    ShuttingDown,
    StartState,
    Ticket,
)
from tests.service.engine.walk import SEATS, Walk, ask, finish, images


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    company=st.lists(
        st.tuples(st.integers(1, 12), st.integers(0, 99), st.integers(1, 9), st.integers(0, 7)), max_size=5
    ),
    before=st.integers(0, 3),
)
def test_the_same_seed_gives_the_same_image_in_any_company(
    make_engine: Callable[..., Engine], company: list[tuple[int, int, int, int]], before: int
) -> None:
    engine = make_engine()
    alone = engine.submit(ask(3, seed=7))
    finish(engine)
    for i, (n, seed, steps, label) in enumerate(company):
        if i == before:
            again = engine.submit(ask(3, seed=7))
        engine.submit(ask(n, seed=seed, steps=steps, label=label))
        engine.step()
    if before >= len(company):
        again = engine.submit(ask(3, seed=7))
    finish(engine)
    assert np.array_equal(images(alone), images(again))


def test_n_images_are_those_that_calls_for_one_each_give(engine: Engine) -> None:
    together = engine.submit(ask(4, seed=3))
    apart = [engine.submit(ask(1, seed=3, first=i)) for i in range(4)]
    finish(engine)
    assert np.array_equal(images(together), np.concatenate([images(ticket) for ticket in apart]))
    assert len({image.tobytes() for image in images(together)}) == 4


def test_a_short_request_beside_a_long_one_takes_as_many_turns_as_alone(engine: Engine) -> None:
    long = engine.submit(ask(900, steps=100))
    for _ in range(3):
        engine.step()
    short = engine.submit(ask(1, steps=10))
    turns = 0
    while not short.outcome:
        engine.step()
        turns += 1
    assert turns == 10
    assert not long.outcome


def test_requests_that_come_while_a_step_runs_ride_the_next_one_together(engine: Engine) -> None:
    tickets = [engine.submit(ask(1, seed=i, steps=4)) for i in range(SEATS)]
    assert finish(engine) == 4
    assert {ticket.max_batch_seen for ticket in tickets} == {SEATS}


def test_who_gives_up_frees_his_seats_at_the_next_step(engine: Engine) -> None:
    large, small = engine.submit(ask(100, steps=50)), engine.submit(ask(8, steps=1))
    engine.step()
    engine.cancel(large)
    finish(engine)
    assert large.outcome == "cancelled"
    assert small.outcome
    assert engine.outstanding == 0
    assert engine.ended == {"accepted": 2, "cancelled": 1, "delivered": 1}


def test_giving_up_what_is_done_changes_nothing(engine: Engine) -> None:
    ticket = engine.submit(ask())
    finish(engine)
    engine.cancel(ticket)
    finish(engine)
    assert len(images(ticket)) == 1
    assert engine.outstanding == 0


@pytest.mark.parametrize(("label", "why"), [(9, "label 9 is not allowed"), (8, "not finite")])
def test_only_the_guilty_row_s_request_fails(engine: Engine, label: int, why: str) -> None:
    good = [engine.submit(ask(2, seed=i)) for i in range(2)]
    guilty = engine.submit(Request("walk", (Sample(StartState(0, 0, 1)), Sample(StartState(0, 1, label))), 2))
    later = engine.submit(ask(1, seed=5))
    finish(engine)
    alone = [engine.submit(ask(2, seed=i)) for i in range(2)]
    finish(engine)
    for ticket, reference in zip(good, alone, strict=True):
        assert np.array_equal(images(ticket), images(reference))
    assert len(images(later)) == 1
    with pytest.raises(EngineError, match=f"image 1 could not be generated: .*{why}"):
        guilty.result()
    assert engine.outstanding == 0


def test_a_request_that_cannot_be_planned_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Request) -> list[object]:
        raise KeyError("no such sampler")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runners["walk"], "rows", broken)
        ticket = engine.submit(ask(2))
        engine.step()
    with pytest.raises(EngineError, match="no such sampler"):
        ticket.result()
    later = engine.submit(ask(2))
    finish(engine)
    assert len(images(later)) == 2
    assert engine.outstanding == engine.remaining_steps == 0


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(queue_images=10)
    engine.submit(ask(8))
    with pytest.raises(QueueFull) as refusal:
        engine.submit(ask(3))
    assert refusal.value.retry_after >= 1
    engine.submit(ask(2))
    finish(engine)
    engine.submit(ask(10))
    # By the clock every turn takes a second, and 50 links went in two turns of 8 rows and 2 each five times over.
    with pytest.raises(QueueFull) as refusal:
        engine.submit(ask(1))
    assert refusal.value.retry_after == pytest.approx(10, abs=1)
    finish(engine)
    assert engine.outstanding == 0


def timed(n: int, steps: int, timeout: float) -> Request:
    return ask(n, steps=steps)._replace(timeout=timeout)


def test_what_takes_longer_by_itself_than_it_may_is_refused_at_once(engine: Engine) -> None:
    engine.submit(timed(1, steps=100, timeout=1000))  # nothing was measured yet
    finish(engine)
    # By the clock a turn takes a second, and so does each link of a lone row.
    with pytest.raises(DeadlineUnattainable) as refusal:
        engine.submit(timed(1, steps=50, timeout=30))
    assert refusal.value.seconds == pytest.approx(50, rel=0.1)
    assert engine.outstanding == 0
    ticket = engine.submit(timed(1, steps=20, timeout=1000))
    finish(engine)
    assert len(images(ticket)) == 1


def test_who_is_late_leaves_at_the_next_step_and_frees_his_seats(engine: Engine) -> None:
    late, neighbour = engine.submit(timed(SEATS, steps=90, timeout=15)), engine.submit(ask(2, steps=4))
    for _ in range(20):
        engine.step()
    with pytest.raises(DeadlineExceeded, match="not finished within 15 s"):
        late.result()
    assert engine.outstanding == 0
    assert not engine.deadlines
    assert engine.ended["late"] == 1
    again = engine.submit(ask(2, steps=4))
    finish(engine)
    assert np.array_equal(images(neighbour), images(again))


def test_a_batch_that_finds_no_memory_is_halved_until_it_fits_and_stays_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = engine.submit(ask(SEATS, seed=4))
    finish(engine)
    runner, sizes = engine.runners["walk"], []
    step = runner.family.step

    def greedy(rows: Rows) -> Tensor:
        sizes.append(len(rows.state))
        if len(rows.state) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(rows)

    monkeypatch.setattr(runner.family, "step", greedy)
    tickets = [engine.submit(ask(SEATS, seed=seed)) for seed in (4, 5)]
    finish(engine)
    assert np.array_equal(images(tickets[0]), images(alone))
    assert len(images(tickets[1])) == SEATS
    assert [size for size in sizes if size > 2] == [8, 4]  # once each; from then on it is known
    assert runner.sizes == [1, 2, 3]


def test_one_row_that_finds_no_memory_fails_by_itself(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Rows) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runners["walk"].family, "step", full)
        ticket = engine.submit(ask(2))
        finish(engine)
    with pytest.raises(EngineError, match="not enough memory for a batch of 1"):
        ticket.result()
    again = engine.submit(ask(2))
    finish(engine)
    assert len(images(again)) == 2


def test_a_row_that_finds_no_memory_even_alone_makes_nobody_s_batches_smaller(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = engine.runners["walk"]
    step, sizes = runner.family.step, list(runner.sizes)

    def full(rows: Rows) -> Tensor:
        if 13 in rows.seed:
            raise torch.OutOfMemoryError("out of memory")
        return step(rows)

    monkeypatch.setattr(runner.family, "step", full)
    guilty, innocent = engine.submit(ask(1, seed=13)), engine.submit(ask(SEATS - 1, seed=4))
    finish(engine)
    with pytest.raises(EngineError, match="not enough memory for a batch of 1"):
        guilty.result()
    assert len(images(innocent)) == SEATS - 1
    assert runner.sizes == sizes


def test_what_has_no_room_at_warm_up_is_served_in_smaller_batches(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Walk.step

    def greedy(self: Walk, rows: Rows) -> Tensor:
        if len(rows.state) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return step(self, rows)

    monkeypatch.setattr(Walk, "step", greedy)
    engine = make_engine()
    assert engine.runners["walk"].sizes == [1, 2, 3]
    ticket = engine.submit(ask(SEATS))
    finish(engine)
    assert len(images(ticket)) == SEATS


def test_a_caller_who_cannot_be_told_is_nobody_else_s_trouble(engine: Engine) -> None:
    def deaf() -> None:
        raise RuntimeError("a bug")

    told: list[int] = []
    engine.submit(ask(1), deaf)
    engine.submit(ask(1), lambda: told.append(1))
    finish(engine)
    assert told
    engine.submit(ask(1), deaf)
    engine.recover(RuntimeError("another"))
    assert engine.outstanding == 0


@pytest.mark.parametrize("kind", [EventLoopEngine, ThreadEngine])
async def test_a_turn_that_breaks_ends_everybody_and_the_next_is_as_if_nothing_had_been(
    make_engine: Callable[..., Engine], kind: type[EventLoopEngine | ThreadEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    driver = kind(engine)

    def broken() -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "schedule", broken)
        tickets = [engine.submit(ask(3, seed=i)) for i in range(3)]
        await driver.start()
        await until(lambda: all(ticket.outcome for ticket in tickets))
    for ticket in tickets:
        with pytest.raises(EngineError, match="failed and was restarted"):
            ticket.result()
    after = engine.submit(ask(3))
    await until(lambda: bool(after.outcome))
    assert len(images(after)) == 3
    await driver.stop(grace=1)
    assert engine.outstanding == engine.remaining_steps == 0
    assert engine.ended == {"accepted": 4, "failed": 3, "delivered": 1}


async def until(true: Callable[[], bool]) -> None:
    """Let the loop run until it is."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def test_one_model_does_not_starve_the_other(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("a", "b")
    engine.submit(ask(900, model="a", steps=100))
    for _ in range(20):
        engine.step()
    other = engine.submit(ask(1, model="b", steps=1))
    engine.step()
    engine.step()
    assert other.outcome


def test_after_stop_what_was_accepted_is_drawn_and_the_rest_refused(engine: Engine) -> None:
    ticket = engine.submit(ask(3))
    engine.stop()
    with pytest.raises(ShuttingDown):
        engine.submit(ask())
    finish(engine)
    assert len(images(ticket)) == 3


def test_what_is_abandoned_ends_too(engine: Engine) -> None:
    begun, waiting = engine.submit(ask(20, steps=50)), None
    engine.step()
    waiting = engine.submit(ask(1))
    engine.abandon()
    for ticket in (begun, waiting):
        with pytest.raises(ShuttingDown):
            ticket.result()
    assert engine.outstanding == 0
    assert engine.ended["stopped"] == 2


@pytest.mark.parametrize("kind", [EventLoopEngine, ThreadEngine])
async def test_a_driver_draws_what_many_threads_ask_and_ends_what_it_cannot(
    make_engine: Callable[..., Engine], kind: type[EventLoopEngine | ThreadEngine]
) -> None:
    engine = make_engine()
    driver = kind(engine)
    await driver.start()
    tickets: list[Ticket] = []
    told: list[int] = []

    def ask_often() -> None:
        tickets.extend(engine.submit(ask(1, seed=i), lambda: told.append(threading.get_ident())) for i in range(10))

    if kind is ThreadEngine:
        threads = [threading.Thread(target=ask_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    else:
        ask_often()
    await until(lambda: all(ticket.outcome for ticket in tickets))
    assert all(len(images(ticket)) == 1 for ticket in tickets)
    await asyncio.sleep(0.01)
    assert len(told) == len(tickets)  # each in one turn: all of them on the loop's thread
    assert set(told) == {threading.get_ident()}
    endless = engine.submit(ask(900, steps=100))
    await driver.stop(grace=0.05)
    with pytest.raises(ShuttingDown):
        endless.result()
    assert engine.outstanding == 0
    assert engine.ended["accepted"] == sum(engine.ended.values()) - engine.ended["accepted"]


class Broken(EngineObserver):
    """One whose first count of a kind goes wrong."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_batch(self, *_: object) -> None:
        self._break("on_batch")

    def on_step(self, *_: object) -> None:
        self._break("on_step")

    def _break(self, kind: str) -> None:
        if kind == self.kind:
            self.kind = ""
            raise OSError("no room to count in")


@pytest.mark.parametrize("kind", ["on_batch", "on_step"])
@pytest.mark.parametrize("driver", [EventLoopEngine, ThreadEngine])
def test_where_a_count_fails_everybody_is_told_and_who_asks_again_at_once_is_drawn(
    make_engine: Callable[..., Engine], driver: type[EventLoopEngine] | type[ThreadEngine], kind: str
) -> None:
    async def main() -> list[str]:
        engine = make_engine()
        engine.observer = Broken(kind)
        done, tickets = asyncio.Event(), list[Ticket]()

        def told() -> None:
            if tickets[-1].outcome and len(tickets) < 3:
                tickets.append(engine.submit(ask(steps=1), told))
            elif tickets[-1].outcome:
                done.set()

        driving = driver(engine)
        await driving.start()
        tickets.append(engine.submit(ask(steps=1), told))
        await asyncio.wait_for(done.wait(), 20)
        await driving.stop(1)
        return [ticket.outcome for ticket in tickets]

    *others, last = asyncio.run(main())
    assert set(others) <= {"delivered", "failed"}  # whoever was there as it broke
    assert last == "delivered"
