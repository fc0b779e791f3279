"""The choice of a torch device by name."""

import pytest
import torch

from models.devices import CUDA_ARITHMETIC, arithmetic, choose_device, use_reproducible_kernels


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


def test_convolutions_use_deterministic_kernels_and_tf32_and_products_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored after the test
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with cudnn.flags(benchmark=True, deterministic=False, allow_tf32=False):
        products = matmul.allow_tf32
        matmul.allow_tf32 = True
        try:
            use_reproducible_kernels()
            assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == (True, False, True)
            assert not matmul.allow_tf32
        finally:
            matmul.allow_tf32 = products


def test_the_arithmetic_of_a_gpu_names_the_gpu_and_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    assert arithmetic(torch.device("cuda"), 1) == f"NVIDIA H100 80GB HBM3 cuDNN 91000, {CUDA_ARITHMETIC}"
    assert arithmetic(torch.device("cpu"), 3).endswith(" threads 3")
