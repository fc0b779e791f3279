"""An engine over the deterministic test family."""

from collections.abc import Callable

import pytest
import torch

from service.engine.engine import Engine
from service.engine.runner import Runner
from tests.service.engine.walk import MAX_BATCH_SIZE, Clock, NoConfig, Walk


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    """Makes an engine with warm models of the given names, all of them walks."""

    def make(*names: str, queue_images: int = 1000) -> Engine:
        runners = {name: Runner(Walk(NoConfig()), torch.device("cpu"), MAX_BATCH_SIZE) for name in names or ("walk",)}
        for runner in runners.values():
            runner.warm_up()
        return Engine(runners, queue_images=queue_images, clock=Clock())

    return make


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
