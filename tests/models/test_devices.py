"""The choice of a torch device by name."""

import pytest
import torch

from models.devices import choose_device


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The devices that torch reports: the number of CUDA GPUs, and whether there is an Apple GPU."""
    cuda, mps = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize(
    ("hardware", "name", "index", "expected"),
    [
        ((0, False), "auto", 0, "cpu"),
        ((0, True), "auto", 0, "cpu"),
        ((2, False), "auto", 0, "cuda:0"),
        ((2, False), "cuda", 1, "cuda:1"),
        ((2, False), "cuda", 2, "cuda:0"),
        ((2, False), "cpu", 1, "cpu"),
        ((0, True), "mps", 3, "mps"),
    ],
    indirect=["hardware"],
)
def test_a_name_gives_a_device(name: str, index: int, expected: str) -> None:
    assert choose_device(name, index) == torch.device(expected)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("hardware", [(0, False)], indirect=True)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "torch sees no GPU; set it to cpu or auto"),
        ("mps", "torch sees no Apple GPU; set it to cpu or auto"),
        ("tpu", "unknown device 'tpu'; set it to one of auto, cpu, cuda, mps"),
    ],
)
def test_the_error_for_a_missing_device_says_what_to_set(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(name)
