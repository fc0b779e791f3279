"""CUDA graphs on a GPU, and an imitation on machines without one."""

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


def imitate_recorder(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
    """Like a graph: each replay reads the recorded inputs and writes to the recorded outputs."""
    outputs = function()

    def replay() -> None:
        for output, x in zip(outputs, function(), strict=True):
            output.copy_(x)

    return replay, outputs


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU if there is one."""
    return torch.device(request.param)


@pytest.fixture
def record(device: torch.device) -> Record:
    """A recorder for the device."""
    return cuda_recorder(device) if device.type == "cuda" else imitate_recorder


def powers(base: int, exponent: torch.Tensor, x: torch.Tensor) -> Tensors:
    return base**exponent, x - 1


def test_results_are_not_overwritten_by_later_calls(device: torch.device, record: Record) -> None:
    call = CudaGraphs(2, record)
    x = torch.zeros(3, device=device)
    first = call(powers, torch.tensor([1, 2, 3], device=device), x)
    second = call(powers, torch.tensor([4, 5, 6], device=device), x + 1)
    assert [[part.tolist() for part in result] for result in (first, second)] == [
        [[2, 4, 8], [-1, -1, -1]],
        [[16, 32, 64], [0, 0, 0]],
    ]
    assert x.tolist() == [0, 0, 0]


def test_each_function_and_shape_is_recorded_once(device: torch.device, record: Record) -> None:
    recorded = []

    def counting_recorder(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        recorded.append(function)
        return record(function)

    call = CudaGraphs(3, counting_recorder)
    for size in (1, 2, 2, 1, 2):
        call(powers, torch.ones(size, dtype=torch.int64, device=device), torch.ones(size, device=device))
    assert len(recorded) == 2


@pytest.mark.parametrize("name", families.names())
def test_replayed_and_eager_sampling_give_the_same_images(name: str, device: torch.device, record: Record) -> None:
    eager, replayed = (Runner(small(name).for_sampling().to(device), device, 8) for _ in range(2))
    eager.call = lambda function, *inputs: function(eager.family, *inputs)
    replayed.call = CudaGraphs(replayed.family, record)
    images = []
    for runner in (eager, replayed):
        steps = min(4, runner.family.steps.maximum)
        requests = [
            Request("m", tuple(Sample(StartState(seed, i, seed)) for i in range(count)), steps, guidance=guidance)
            for seed, count, guidance in ((1, 8, 1.0), (2, 3, 1.5), (3, 8, 1.0))
        ]
        rows = [row for request in requests for row in runner.rows(request)]
        results = [[runner.advance(rows[at : at + 8]) for at in range(0, len(rows), 8)] for _ in range(steps)]
        images.append([image.tobytes() for batch in results[-1] for image in batch if image is not None])
    assert len(images[0]) == 19
    assert images[0] == images[1]
