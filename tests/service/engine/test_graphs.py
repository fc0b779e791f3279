"""Functions that are recorded once and replayed: what a GPU does, and a stand-in for it where there is none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models import families
from service.engine.graphs import CudaGraphs, Record, Tensors, cuda_recorder
from service.engine.request import Request, Sample, StartState
from service.engine.runner import Runner
from tests.conftest import small

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


def imitated(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
    """Like a graph: what it was recorded on is where it reads, and what came out then is where it writes."""
    found = function()

    def replay() -> None:
        for place, x in zip(found, function(), strict=True):
            place.copy_(x)

    return replay, found


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """This machine's, and a GPU."""
    return torch.device(request.param)


@pytest.fixture
def record(device: torch.device) -> Record:
    """What records there."""
    return cuda_recorder(device) if device.type == "cuda" else imitated


def powers(base: int, exponent: torch.Tensor, x: torch.Tensor) -> Tensors:
    return base**exponent, x - 1


def test_what_is_returned_belongs_to_the_caller(device: torch.device, record: Record) -> None:
    call = CudaGraphs(2, record)
    x = torch.zeros(3, device=device)
    first = call(powers, torch.tensor([1, 2, 3], device=device), x)
    second = call(powers, torch.tensor([4, 5, 6], device=device), x + 1)
    assert [[part.tolist() for part in found] for found in (first, second)] == [
        [[2, 4, 8], [-1, -1, -1]],
        [[16, 32, 64], [0, 0, 0]],
    ]
    assert x.tolist() == [0, 0, 0]


def test_each_function_and_shape_is_recorded_once(device: torch.device, record: Record) -> None:
    recorded = []

    def counting(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        recorded.append(function)
        return record(function)

    call = CudaGraphs(3, counting)
    for size in (1, 2, 2, 1, 2):
        call(powers, torch.ones(size, dtype=torch.int64, device=device), torch.ones(size, device=device))
    assert len(recorded) == 2


@pytest.mark.parametrize("name", families.names())
def test_recordings_draw_what_functions_draw(name: str, device: torch.device, record: Record) -> None:
    plain, replayed = (Runner(small(name).for_sampling().to(device), device, 8) for _ in range(2))
    plain.call = lambda function, *inputs: function(plain.family, *inputs)
    replayed.call = CudaGraphs(replayed.family, record)
    images = []
    for runner in (plain, replayed):
        steps = min(4, runner.family.steps.maximum)
        requests = [
            Request("m", tuple(Sample(StartState(seed, i, seed)) for i in range(count)), steps, guidance=guidance)
            for seed, count, guidance in ((1, 8, 1.0), (2, 3, 1.5), (3, 8, 1.0))
        ]
        rows = [row for request in requests for row in runner.rows(request)]
        drawn = [[runner.advance(rows[at : at + 8]) for at in range(0, len(rows), 8)] for _ in range(steps)]
        images.append([image.tobytes() for part in drawn[-1] for image in part if image is not None])
    assert len(images[0]) == 19
    assert images[0] == images[1]
