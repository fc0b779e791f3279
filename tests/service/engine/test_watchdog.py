"""A process whose GPU no longer works exits."""

import os

import pytest
import torch
from torch import Tensor

from models.base import Rows
from service.engine.engine import Engine
from service.engine.request import EngineError
from service.engine.watchdog import exit_if_device_is_lost
from tests.service.engine import test_engine as requests
from tests.service.engine.test_engine import images, run

CPU = torch.device("cpu")
LAUNCH_FAILURE = torch.AcceleratorError("an illegal memory access was encountered")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The status of each exit of this process, which goes on."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    return exits


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which nothing can be computed."""

    def fails(*_: object, **__: object) -> Tensor:
        raise LAUNCH_FAILURE

    monkeypatch.setattr(torch, "zeros", fails)


@pytest.mark.usefixtures("lost")
def test_a_lost_device_ends_its_process(exits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    exit_if_device_is_lost(LAUNCH_FAILURE, CPU)
    assert exits == [1]
    assert "device cpu no longer works (an illegal memory access was encountered); this process exits" in caplog.text
    exit_if_device_is_lost(ValueError("another fault"), CPU)
    assert exits == [1]


def test_a_device_that_still_works_does_not_end_its_process(exits: list[int]) -> None:
    exit_if_device_is_lost(LAUNCH_FAILURE, CPU)
    assert not exits


def test_a_request_of_a_failed_launch_fails_and_others_succeed(
    engine: Engine, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Rows) -> Tensor:
        raise LAUNCH_FAILURE

    with monkeypatch.context() as patch:
        patch.setattr(engine.runners["walk"].family, "step", failing)
        ticket = engine.submit(requests.request(1))
        run(engine)
    with pytest.raises(EngineError, match="illegal memory access"):
        ticket.result()
    later = engine.submit(requests.request(2))
    run(engine)
    assert len(images(later)) == 2
    assert not exits


def test_the_engine_exits_when_its_device_is_lost(
    engine: Engine, exits: list[int], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("lost")  # after the engine has been made
    engine.recover(LAUNCH_FAILURE)
    assert exits == [1]
