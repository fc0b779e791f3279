"""The engine on an imitated GPU: it launches a batch before it reads the results of the one before."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import Rows
from service.engine.engine import Engine
from service.engine.loops import _step
from service.engine.request import EngineError, Request, Sample, StartState
from service.engine.runner import Row
from service.engine.slot_runner import Launch, Results, SlotRunner
from tests.service.engine.conftest import make_slot_runner
from tests.service.engine.walk import MAX_BATCH_SIZE, images, request, run

pytestmark = pytest.mark.parametrize("make_engine", [make_slot_runner], indirect=True, ids=["gpu-imitated"])


def slot_runner(engine: Engine, model: str = "walk") -> SlotRunner:
    runner = engine.runners[model]
    assert isinstance(runner, SlotRunner)
    return runner


def test_a_batch_is_launched_before_the_results_of_the_last_are_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, events = slot_runner(engine), []
    launch = runner.launch

    def watched(rows: list[Row]) -> Launch:
        launched, number = launch(rows), 1 + sum("launch" in event for event in events)
        events.append(f"launch {number}")

        def collect() -> Results:
            events.append(f"collect {number}")
            return launched.collect()

        return Launch(launched.size, collect)

    monkeypatch.setattr(runner, "launch", watched)
    ticket = engine.submit(request(2, steps=3))
    assert run(engine) == 4
    assert ticket.outcome == "delivered"
    assert events == ["launch 1", "launch 2", "collect 1", "launch 3", "collect 2", "collect 3"]


def test_a_finished_row_leaves_its_place_in_the_next_batch_before_its_image_is_read(engine: Engine) -> None:
    ticket = engine.submit(request(2 * MAX_BATCH_SIZE, steps=1))
    remaining = []
    while engine.step():
        remaining.append(ticket.remaining_images)
    assert remaining == [2 * MAX_BATCH_SIZE, MAX_BATCH_SIZE, 0]


def test_results_of_requests_that_were_cancelled_meanwhile_are_dropped(engine: Engine) -> None:
    expected = engine.submit(request(2, steps=2))
    run(engine)
    cancelled, other = engine.submit(request(3, steps=2, seed=5)), engine.submit(request(2, steps=2))
    engine.step()
    engine.step()
    engine.cancel(cancelled)
    run(engine)
    assert (cancelled.outcome, cancelled.images) == ("cancelled", [None] * 3)
    assert np.array_equal(images(other), images(expected))
    assert (engine.outstanding, engine.remaining_steps) == (0, 0)
    assert len(slot_runner(engine).free) == slot_runner(engine).slots.capacity


def test_only_the_request_of_a_row_that_is_not_finite_fails(engine: Engine) -> None:
    faulty = engine.submit(Request("walk", (Sample(StartState(0, 0, 1)), Sample(StartState(0, 1, 8))), 3))
    other = engine.submit(request(2, steps=5))
    run(engine)
    with pytest.raises(EngineError, match="image 1 could not be generated: the model's output is not finite"):
        faulty.result()
    assert len(images(other)) == 2
    assert (engine.outstanding, engine.remaining_steps) == (0, 0)


def test_after_results_that_cannot_be_read_the_engine_starts_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = slot_runner(engine)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "copy", lambda _: lambda: 1 / 0)
        lost = engine.submit(request(2, steps=3))
        while _step(engine):
            pass
    with pytest.raises(EngineError, match="the engine failed and was restarted"):
        lost.result()
    assert engine.launched == []
    later = engine.submit(request(2, steps=3))
    run(engine)
    assert len(images(later)) == 2


def test_a_model_is_unloaded_after_the_results_of_its_last_batch(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("a", "b")
    cancelled = engine.submit(request(1, steps=9, model="a"))
    engine.step()
    engine.cancel(cancelled)
    engine.unload("a")
    other = engine.submit(request(1, steps=2, model="b"))
    engine.step()
    run(engine)
    assert set(engine.runners) == {"b"}
    assert len(images(other)) == 1


def test_models_are_charged_for_their_own_steps(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("a", "b")
    charged: list[tuple[str, int]] = []
    engine.observer.on_batch = lambda model, rows, *_: charged.append((model, rows))  # type: ignore[method-assign]
    engine.submit(request(3, steps=2, model="a"))
    engine.submit(request(2, steps=2, model="b"))
    run(engine)
    assert sorted(charged) == [("a", 3), ("a", 3), ("b", 2), ("b", 2)]
    lanes = engine.scheduler.lanes["interactive"]
    assert lanes["a"].used_seconds > 0
    assert lanes["b"].used_seconds > 0


def test_rows_that_fail_at_launch_are_found_by_halving(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    family = slot_runner(engine).family
    initial_state = family.initial_state

    def fails(seed: Tensor, *conditions: Tensor) -> Tensor:
        if (seed == 13).any():
            raise torch.OutOfMemoryError("no memory")
        return initial_state(seed, *conditions)

    monkeypatch.setattr(family, "initial_state", fails)
    healthy, faulty = engine.submit(request(5, seed=4)), engine.submit(request(1, seed=13))
    run(engine)
    assert len(images(healthy)) == 5
    with pytest.raises(EngineError, match="not enough memory for a batch of 1"):
        faulty.result()


def test_a_step_of_other_rows_follows_the_halved_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose batch failed and was halved have the images that they have alone."""
    family = slot_runner(engine).family
    alone = engine.submit(request(MAX_BATCH_SIZE - 1, seed=4, steps=3))
    run(engine)
    step, calls = family.step, []

    def fails_sometimes(rows: Rows) -> Tensor:
        calls.append(1)
        if len(calls) in (2, 5, 6):
            raise RuntimeError("a fault")
        return step(rows)

    monkeypatch.setattr(family, "step", fails_sometimes)
    again = engine.submit(request(MAX_BATCH_SIZE - 1, seed=4, steps=3))
    run(engine)
    assert np.array_equal(images(again), images(alone))
