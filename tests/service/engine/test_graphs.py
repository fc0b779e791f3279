"""CUDA graphs on a GPU, and an imitation on machines without one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models import families
from service.engine.graphs import CudaGraphs, Record, Tensors, cuda_recorder
from service.engine.request import Request, Sample, StartState
from service.engine.runner import RecordingsDiffer, Runner, batch_sizes
from tests.conftest import small
from tests.service.engine.imitation import imitate_recorder

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


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
    eager.call = lambda function, *inputs, **options: function(eager.family, *inputs, **options)
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


def test_recordings_of_each_option_are_kept_apart(record: Record, device: torch.device) -> None:
    call = CudaGraphs(2, record)
    x = torch.tensor([3], device=device)
    assert [call(plus, x, added=added)[0].tolist() for added in (1, 2, 1)] == [[6], [7], [6]]
    assert len(call.recordings) == 2


def test_functions_are_recorded_again_and_keep_the_new_recordings(record: Record, device: torch.device) -> None:
    recorded = []

    def counting_recorder(function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        recorded.append(function)
        return record(function)

    call = CudaGraphs(2, counting_recorder)
    x = torch.tensor([3], device=device)
    call(plus, x, added=1)
    call(plus, x, added=2)
    with call.record_again():
        call(plus, x, added=1)
    assert len(recorded) == 3
    call(plus, x, added=1)
    call(plus, x, added=2)
    assert len(recorded) == 3


def plus(base: int, x: torch.Tensor, *, added: int) -> Tensors:
    return (base + x + added,)


class Unreliable:
    """A recorder whose recordings of `size` rows give other bits each time that they are made."""

    def __init__(self, size: int) -> None:
        self.size, self.recordings = size, 0

    def __call__(self, function: Callable[[], Tensors]) -> tuple[Callable[[], Any], Tensors]:
        self.recordings += 1
        error = 1e-6 * self.recordings

        def rounds_otherwise() -> Tensors:
            return tuple(x * (1 + error) if x.is_floating_point() and len(x) == self.size else x for x in function())

        return imitate_recorder(rounds_otherwise)


@pytest.mark.parametrize(("unreliable", "sizes"), [(2, [1, 4, 8]), (8, [1, 2, 4])])
def test_sizes_whose_recordings_differ_are_not_used(unreliable: int, sizes: list[int]) -> None:
    runner = Runner(small("vae").for_sampling(), CPU, 8)
    runner.sizes = batch_sizes(8, fine=False)
    runner.call = CudaGraphs(runner.family, Unreliable(unreliable))
    runner.warm_up()
    assert runner.sizes == sizes
    assert {shape[0] for _, _, shape, *_ in runner.call.recordings} == set(sizes)  # the others are freed


def test_a_model_whose_recordings_all_differ_does_not_start() -> None:
    runner = Runner(small("vae").for_sampling(), CPU, 1)
    runner.call = CudaGraphs(runner.family, Unreliable(1))
    with pytest.raises(RecordingsDiffer, match="recordings of 1 rows give other bits when they are made again"):
        runner.warm_up()


def test_recordings_are_made_with_example_inputs(record: Record, device: torch.device) -> None:
    """A function that changes its subject runs once per call, although a recording runs it, too."""
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    call = CudaGraphs(counts, record, example=lambda at: torch.full_like(at, 2))
    at = torch.tensor([1], device=device)
    for _ in range(3):
        call(count, at)
    assert counts[:2].tolist() == [0, 3]


def count(counts: torch.Tensor, at: torch.Tensor) -> Tensors:
    counts[at] = counts[at] + 1
    return ()
