"""An engine over the deterministic test family."""

from collections.abc import Callable

import pytest
import torch

from models.base import Family
from service.engine.engine import Engine
from service.engine.runner import Runner
from service.engine.slot_runner import SlotRunner
from tests.service.engine.imitation import imitate_copies, imitate_recorder
from tests.service.engine.walk import MAX_BATCH_SIZE, Clock, NoConfig, Walk


def make_slot_runner(family: Family, device: torch.device, max_batch_size: int) -> SlotRunner:
    """A runner as on a GPU, with two tiles per batch."""
    tile_rows = max_batch_size // 2
    imitated = {"record": imitate_recorder, "receive": imitate_copies}
    return SlotRunner(family, device, max_batch_size, tile_rows=tile_rows, **imitated)


@pytest.fixture(params=[Runner, make_slot_runner], ids=["cpu", "gpu-imitated"])
def make_engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Makes an engine with warm models of the given names, all of them walks."""

    def make(*names: str, queue_images: int = 1000) -> Engine:
        make_runner, cpu = request.param, torch.device("cpu")
        runners = {name: make_runner(Walk(NoConfig()), cpu, MAX_BATCH_SIZE) for name in names or ("walk",)}
        for runner in runners.values():
            runner.warm_up()
        return Engine(runners, queue_images=queue_images, clock=Clock())

    return make


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
