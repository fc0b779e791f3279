"""Recordings of functions as CUDA graphs, by the calls that they make: on a CPU nothing is recorded."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from models.cuda_graph import record_graph

GPU = torch.device("cuda", 0)


class FakeStream:
    """A CUDA stream, a context that selects one, and a generator, in name only."""

    current = "default"

    def __init__(self, name: str = "side") -> None:
        self.name, self.healed = name, False

    def wait_stream(self, _: "FakeStream") -> None:
        pass

    def clone_state(self) -> str:
        return "copy"

    def graphsafe_set_state(self, state: str) -> None:
        self.healed = state == "copy"


class FakeGraph:
    """A CUDA graph and the context that records it, which stays on its stream if it fails, as torch's does."""

    fails = False

    def __init__(self, *_: object, **options: str) -> None:
        assert options in ({}, {"pool": "shared", "capture_error_mode": "thread_local"})

    def __enter__(self) -> None:
        FakeStream.current = "capture"

    def __exit__(self, *_: object) -> None:
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")
        FakeStream.current = "default"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    """The generator of a GPU that records nothing, but is called as a GPU is."""

    @contextmanager
    def select(stream: FakeStream) -> Iterator[None]:
        before, FakeStream.current = FakeStream.current, stream.name
        try:
            yield
        finally:
            FakeStream.current = before

    generator = FakeStream("generator")
    for name, value in {
        "device": lambda _: nullcontext(),
        "current_device": lambda: 0,
        "current_stream": lambda: FakeStream(FakeStream.current),
        "Stream": FakeStream,
        "stream": select,
        "CUDAGraph": FakeGraph,
        "graph": FakeGraph,
        "default_generators": (generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(FakeStream, "current", "default")
    return generator


@pytest.mark.usefixtures("generator")
def test_a_gpu_warms_up_on_another_stream_and_records_once() -> None:
    streams = []

    def function() -> Tensor:
        streams.append(FakeStream.current)
        return torch.tensor(len(streams))

    graph, outputs = record_graph(function, GPU, warm_up=3, pool="shared")
    assert streams == ["side"] * 3 + ["capture"]
    assert isinstance(graph, FakeGraph)
    assert int(outputs) == 4
    assert FakeStream.current == "default"


def test_a_failed_recording_names_its_cause_and_leaves_streams_and_random_numbers_usable(
    generator: FakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGraph, "fails", True)

    def function() -> Tensor:
        if FakeStream.current == "capture":
            raise RuntimeError("the host reads a tensor")
        return torch.tensor(0)

    with pytest.raises(RuntimeError, match="the host reads a tensor"):
        record_graph(function, GPU, pool="shared")
    assert FakeStream.current == "default"
    assert generator.healed
