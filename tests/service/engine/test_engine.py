"""The engine: batch invariance, exactly one end per request, fair latency, and recovery from failures."""

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
from service.engine.runner import Runner
from tests.service.engine.walk import MAX_BATCH_SIZE, Walk, images, request, run

LOOPS = pytest.mark.parametrize("loop_type", [EventLoopEngine, ThreadEngine])
Loop = type[EventLoopEngine] | type[ThreadEngine]
ON_A_CPU = pytest.mark.parametrize("make_engine", [Runner], indirect=True, ids=["cpu"])
"""For tests of batch sizes, and of steps or seconds of the test clock: on a GPU results come one step later."""


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    others=st.lists(
        st.tuples(st.integers(1, 12), st.integers(0, 99), st.integers(1, 9), st.integers(0, 7)), max_size=5
    ),
    position=st.integers(0, 3),
)
def test_the_same_seed_gives_the_same_image_in_any_batch(
    engine: Engine, others: list[tuple[int, int, int, int]], position: int
) -> None:
    alone = engine.submit(request(3, seed=7))
    run(engine)
    for i, (n, seed, steps, label) in enumerate(others):
        if i == position:
            batched = engine.submit(request(3, seed=7))
        engine.submit(request(n, seed=seed, steps=steps, label=label))
        engine.step()
    if position >= len(others):
        batched = engine.submit(request(3, seed=7))
    run(engine)
    assert np.array_equal(images(alone), images(batched))


def test_a_request_for_n_images_equals_n_requests_for_one(engine: Engine) -> None:
    together = engine.submit(request(4, seed=3))
    apart = [engine.submit(request(1, seed=3, first=i)) for i in range(4)]
    run(engine)
    assert np.array_equal(images(together), np.concatenate([images(ticket) for ticket in apart]))
    assert len({image.tobytes() for image in images(together)}) == 4


@ON_A_CPU
def test_a_short_request_beside_a_long_one_takes_as_many_steps_as_alone(engine: Engine) -> None:
    long = engine.submit(request(900, steps=100))
    for _ in range(3):
        engine.step()
    short = engine.submit(request(1, steps=10))
    steps = 0
    while not short.outcome:
        engine.step()
        steps += 1
    assert steps == 10
    assert not long.outcome


@ON_A_CPU
def test_requests_that_arrive_during_a_step_are_in_the_next_batch_together(engine: Engine) -> None:
    tickets = [engine.submit(request(1, seed=i, steps=4)) for i in range(MAX_BATCH_SIZE)]
    assert run(engine) == 4
    assert {ticket.max_batch_seen for ticket in tickets} == {MAX_BATCH_SIZE}


def test_a_cancelled_request_frees_its_batch_slots(engine: Engine) -> None:
    large, small = engine.submit(request(100, steps=50)), engine.submit(request(8, steps=1))
    engine.step()
    engine.cancel(large)
    run(engine)
    assert large.outcome == "cancelled"
    assert small.outcome
    assert engine.outstanding == 0
    assert engine.ended == {"accepted": 2, "cancelled": 1, "delivered": 1}


def test_cancelling_a_finished_request_has_no_effect(engine: Engine) -> None:
    ticket = engine.submit(request())
    run(engine)
    engine.cancel(ticket)
    run(engine)
    assert len(images(ticket)) == 1
    assert engine.outstanding == 0


@pytest.mark.parametrize(("label", "message"), [(9, "label 9 is not allowed"), (8, "not finite")])
def test_only_the_request_of_a_faulty_row_fails(engine: Engine, label: int, message: str) -> None:
    healthy = [engine.submit(request(2, seed=i)) for i in range(2)]
    faulty = engine.submit(Request("walk", (Sample(StartState(0, 0, 1)), Sample(StartState(0, 1, label))), 2))
    later = engine.submit(request(1, seed=5))
    run(engine)
    expected = [engine.submit(request(2, seed=i)) for i in range(2)]
    run(engine)
    for ticket, reference in zip(healthy, expected, strict=True):
        assert np.array_equal(images(ticket), images(reference))
    assert len(images(later)) == 1
    with pytest.raises(EngineError, match=f"image 1 could not be generated: .*{message}"):
        faulty.result()
    assert engine.outstanding == 0


def test_only_a_request_without_a_schedule_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Request) -> list[object]:
        raise KeyError("no such sampler")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runners["walk"], "rows", broken)
        ticket = engine.submit(request(2))
        engine.step()
    with pytest.raises(EngineError, match="no such sampler"):
        ticket.result()
    later = engine.submit(request(2))
    run(engine)
    assert len(images(later)) == 2
    assert engine.outstanding == engine.remaining_steps == 0


@ON_A_CPU
def test_a_full_queue_refuses_at_once_with_the_time_to_retry(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(queue_images=10)
    engine.submit(request(8))
    with pytest.raises(QueueFull) as refusal:
        engine.submit(request(3))
    assert refusal.value.retry_after >= 1
    engine.submit(request(2))
    run(engine)
    engine.submit(request(10))
    # By the test clock a step takes a second, and 50 row steps took five times two steps, of 8 rows and of 2.
    with pytest.raises(QueueFull) as refusal:
        engine.submit(request(1))
    assert refusal.value.retry_after == pytest.approx(10, abs=1)
    run(engine)
    assert engine.outstanding == 0


def test_a_refusal_does_not_pay_for_sampling_labels(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(queue_images=2)
    engine.submit(request(2))
    monkeypatch.setattr(engine.runners["walk"], "labels", lambda _: pytest.fail("labels of a refused request"))
    with pytest.raises(QueueFull):
        engine.submit(request(1))
    run(engine)


def with_timeout(n: int, steps: int, timeout: float) -> Request:
    return request(n, steps=steps)._replace(timeout=timeout)


@ON_A_CPU
def test_a_request_that_takes_longer_than_its_timeout_even_alone_is_refused(engine: Engine) -> None:
    engine.submit(with_timeout(1, steps=100, timeout=1000))  # before the first measurement
    run(engine)
    # By the test clock a step takes a second.
    with pytest.raises(DeadlineUnattainable) as refusal:
        engine.submit(with_timeout(1, steps=50, timeout=30))
    assert refusal.value.seconds == pytest.approx(50, rel=0.1)
    assert engine.outstanding == 0
    ticket = engine.submit(with_timeout(1, steps=20, timeout=1000))
    run(engine)
    assert len(images(ticket)) == 1


def test_a_request_past_its_deadline_frees_its_batch_slots(engine: Engine) -> None:
    late = engine.submit(with_timeout(MAX_BATCH_SIZE, steps=90, timeout=15))
    other = engine.submit(request(2, steps=4))
    for _ in range(20):
        engine.step()
    with pytest.raises(DeadlineExceeded, match="not finished within 15 s"):
        late.result()
    assert engine.outstanding == 0
    assert not engine.deadlines
    assert engine.ended["late"] == 1
    expected = engine.submit(request(2, steps=4))
    run(engine)
    assert np.array_equal(images(other), images(expected))


@ON_A_CPU
def test_a_batch_without_memory_is_halved_until_it_fits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.submit(request(MAX_BATCH_SIZE, seed=4))
    run(engine)
    runner, sizes = engine.runners["walk"], []
    step = runner.family.step

    def limited(rows: Rows) -> Tensor:
        sizes.append(len(rows.state))
        if len(rows.state) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(rows)

    monkeypatch.setattr(runner.family, "step", limited)
    tickets = [engine.submit(request(MAX_BATCH_SIZE, seed=seed)) for seed in (4, 5)]
    run(engine)
    assert np.array_equal(images(tickets[0]), images(expected))
    assert len(images(tickets[1])) == MAX_BATCH_SIZE
    assert [size for size in sizes if size > 2] == [8, 4]  # one attempt each; later batches are smaller
    assert runner.sizes == [1, 2, 3]


def test_a_single_row_without_memory_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(_: Rows) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runners["walk"].family, "step", without_memory)
        ticket = engine.submit(request(2))
        run(engine)
    with pytest.raises(EngineError, match="not enough memory for a batch of 1"):
        ticket.result()
    later = engine.submit(request(2))
    run(engine)
    assert len(images(later)) == 2


def test_a_row_without_memory_even_alone_does_not_limit_other_batches(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = engine.runners["walk"]
    step, sizes = runner.family.step, list(runner.sizes)

    def limited(rows: Rows) -> Tensor:
        if 13 in rows.seed:
            raise torch.OutOfMemoryError("out of memory")
        return step(rows)

    monkeypatch.setattr(runner.family, "step", limited)
    faulty, healthy = engine.submit(request(1, seed=13)), engine.submit(request(MAX_BATCH_SIZE - 1, seed=4))
    run(engine)
    with pytest.raises(EngineError, match="not enough memory for a batch of 1"):
        faulty.result()
    assert len(images(healthy)) == MAX_BATCH_SIZE - 1
    assert runner.sizes == sizes


@ON_A_CPU
def test_batch_sizes_without_memory_at_warm_up_are_not_used(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Walk.step

    def limited(self: Walk, rows: Rows) -> Tensor:
        if len(rows.state) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return step(self, rows)

    monkeypatch.setattr(Walk, "step", limited)
    engine = make_engine()
    assert engine.runners["walk"].sizes == [1, 2, 3]
    ticket = engine.submit(request(MAX_BATCH_SIZE))
    run(engine)
    assert len(images(ticket)) == MAX_BATCH_SIZE


def test_an_error_in_on_update_does_not_affect_other_requests(engine: Engine) -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    updates: list[int] = []
    engine.submit(request(1), broken)
    engine.submit(request(1), lambda: updates.append(1))
    run(engine)
    assert updates
    engine.submit(request(1), broken)
    engine.recover(RuntimeError("another"))
    assert engine.outstanding == 0


@LOOPS
async def test_a_failed_step_ends_all_requests_and_later_ones_succeed(
    make_engine: Callable[..., Engine], loop_type: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    loop = loop_type(engine)

    def broken() -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "schedule", broken)
        tickets = [engine.submit(request(3, seed=i)) for i in range(3)]
        await loop.start()
        await until(lambda: all(ticket.outcome for ticket in tickets))
    for ticket in tickets:
        with pytest.raises(EngineError, match="failed and was restarted"):
            ticket.result()
    later = engine.submit(request(3))
    await until(lambda: bool(later.outcome))
    assert len(images(later)) == 3
    await loop.stop(grace=1)
    assert engine.outstanding == engine.remaining_steps == 0
    assert engine.ended == {"accepted": 4, "failed": 3, "delivered": 1}


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition holds, for at most ten seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not hold within ten seconds")


def test_a_busy_model_does_not_starve_another_one(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("a", "b")
    engine.submit(request(900, model="a", steps=100))
    for _ in range(20):
        engine.step()
    other = engine.submit(request(1, model="b", steps=1))
    engine.step()
    engine.step()
    assert other.outcome


def test_after_stop_accepted_requests_finish_and_new_ones_are_refused(engine: Engine) -> None:
    ticket = engine.submit(request(3))
    engine.stop()
    with pytest.raises(ShuttingDown):
        engine.submit(request())
    run(engine)
    assert len(images(ticket)) == 3


def test_abandon_ends_all_requests(engine: Engine) -> None:
    started = engine.submit(request(20, steps=50))
    engine.step()
    waiting = engine.submit(request(1))
    engine.abandon()
    for ticket in (started, waiting):
        with pytest.raises(ShuttingDown):
            ticket.result()
    assert engine.outstanding == 0
    assert engine.ended["stopped"] == 2


@LOOPS
async def test_a_loop_finishes_requests_of_many_threads_and_stops_endless_ones(
    make_engine: Callable[..., Engine], loop_type: Loop
) -> None:
    engine = make_engine()
    loop = loop_type(engine)
    await loop.start()
    tickets: list[Ticket] = []
    updates: list[int] = []

    def submit_ten() -> None:
        tickets.extend(
            engine.submit(request(1, seed=i), lambda: updates.append(threading.get_ident())) for i in range(10)
        )

    if loop_type is ThreadEngine:
        threads = [threading.Thread(target=submit_ten) for _ in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    else:
        submit_ten()
    await until(lambda: all(ticket.outcome for ticket in tickets))
    assert all(len(images(ticket)) == 1 for ticket in tickets)
    await asyncio.sleep(0.01)
    assert len(updates) == len(tickets)  # one update per request
    assert set(updates) == {threading.get_ident()}  # on the event loop's thread
    endless = engine.submit(request(900, steps=100))
    await loop.stop(grace=0.05)
    with pytest.raises(ShuttingDown):
        endless.result()
    assert engine.outstanding == 0
    assert engine.ended["accepted"] == sum(engine.ended.values()) - engine.ended["accepted"]


class BrokenObserver(EngineObserver):
    """An observer whose first call of `event` raises an error."""

    def __init__(self, event: str) -> None:
        self.event = event

    def on_batch(self, *_: object) -> None:
        self._break("on_batch")

    def on_step(self, *_: object) -> None:
        self._break("on_step")

    def _break(self, event: str) -> None:
        if event == self.event:
            self.event = ""
            raise OSError("no space left on device")


@pytest.mark.parametrize("event", ["on_batch", "on_step"])
@LOOPS
def test_a_failing_observer_leaves_no_request_without_an_end(
    make_engine: Callable[..., Engine], loop_type: Loop, event: str
) -> None:
    async def main() -> list[str]:
        engine = make_engine()
        engine.observer = BrokenObserver(event)
        done, tickets = asyncio.Event(), list[Ticket]()

        def on_update() -> None:
            if tickets[-1].outcome and len(tickets) < 3:
                tickets.append(engine.submit(request(steps=1), on_update))
            elif tickets[-1].outcome:
                done.set()

        loop = loop_type(engine)
        await loop.start()
        tickets.append(engine.submit(request(steps=1), on_update))
        await asyncio.wait_for(done.wait(), 20)
        await loop.stop(1)
        return [ticket.outcome for ticket in tickets]

    *others, last = asyncio.run(main())
    assert set(others) <= {"delivered", "failed"}  # the request of the failed step may be either
    assert last == "delivered"
