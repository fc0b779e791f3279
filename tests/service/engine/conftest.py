"""An engine over a family whose every number can be foreseen."""

from collections.abc import Callable

import pytest
import torch

from service.engine.engine import Engine
from service.engine.runner import Runner
from tests.service.engine.walk import SEATS, Clock, NoConfig, Walk


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    """An engine of the models named, all of them walks, warm."""

    def make(*names: str, queue_images: int = 1000) -> Engine:
        runners = {name: Runner(Walk(NoConfig()), torch.device("cpu"), SEATS) for name in names or ("walk",)}
        for runner in runners.values():
            runner.warm_up()
        return Engine(runners, queue_images=queue_images, clock=Clock())

    return make


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
