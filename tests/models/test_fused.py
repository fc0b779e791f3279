"""Fused kernels: in Triton's interpreter on a CPU, compiled for a GPU without one, and on a GPU if there is one."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from models import kernels, nets, noise

CPU = torch.device("cpu")


PROOFS = """
import torch
from models import fused, nets, noise

cpu = torch.device("cpu")
print(fused.prove_normal(cpu, 2), fused.prove_group_norm(cpu, 2))
normal, group_norm = noise.torch_normal, nets.torch_group_norm
noise.torch_normal = lambda *arguments: normal(*arguments) * (1 + 2e-7)
nets.torch_group_norm = lambda *arguments: group_norm(*arguments) + 1e-3
print(fused.prove_normal(cpu, 1), fused.prove_group_norm(cpu, 1))
"""


def test_kernels_that_do_what_torch_does_pass_their_proofs_and_others_fail() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROOFS], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["True", "True", "False", "False"], result.stderr


def test_fused_kernels_compile_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    triton = pytest.importorskip("triton", reason="there is no GPU, nor Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = dict.fromkeys(("x", "weight", "bias", "modulation", "out"), "*fp32")
    numbers = {**dict.fromkeys(("positions", "channels", "stride"), "i32"), "eps": "fp32"}
    options = {"AFFINE": True, "MODULATED": True, "SILU": True, "GROUP": 4, "POSITIONS": 256, "WIDTH": 4}
    row = dict.fromkeys(("seed", "index", "step"), "*i64")
    for kernel, arguments, constants in (
        (fused.normal_kernel, {**row, "out": "*fp32", "size": "i32"}, {"BLOCK": fused.NOISE_BLOCK}),
        (fused.group_norm_kernel, {**pointers, **numbers}, options),
    ):
        signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that give other results than torch, and tensors that are taken to be on a GPU."""
    monkeypatch.setattr(kernels, "normal", lambda seed, *_: torch.full((len(seed), 3), 7.0))
    monkeypatch.setattr(kernels, "group_norm", lambda x, *_, **__: torch.full_like(x, 8.0))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


@pytest.mark.usefixtures("replaced")
def test_kernels_replace_noise_and_norms_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row, norm, x = torch.zeros(2, dtype=torch.int64), nn.GroupNorm(8, 8), torch.rand(2, 8, 4, 4)
    with torch.inference_mode():
        assert noise.normal(row, row, row, (3,)).unique().tolist() == [7.0]
        assert nets.group_norm(x, norm).unique().tolist() == [8.0]
        with kernels.unused():
            assert torch.equal(nets.group_norm(x, norm), nn.functional.silu(norm(x)))
        monkeypatch.setattr(torch.Tensor, "is_cuda", False)
        assert torch.equal(noise.normal(row, row, row, (3,)), noise.torch_normal(row, row, row, (3,)))
        assert torch.equal(nets.group_norm(x, norm), nn.functional.silu(norm(x)))


@pytest.mark.usefixtures("replaced")
def test_training_does_not_use_kernels_without_gradients() -> None:
    assert nets.group_norm(torch.rand(2, 8, 4, 4), nn.GroupNorm(8, 8)).requires_grad


def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="there is no GPU, nor Triton")
    from models import fused

    def fails(_: torch.device) -> bool:
        raise RuntimeError("no such instruction")

    for name in ("normal", "group_norm"):
        monkeypatch.setattr(kernels, name, None)
    monkeypatch.setattr(fused, "prove_normal", fails)
    monkeypatch.setattr(fused, "prove_group_norm", lambda _: True)
    fused.install(CPU)
    assert (kernels.normal, kernels.group_norm) == (None, fused.group_norm)
    assert [record.message for record in caplog.records] == [
        "the fused kernel for normal is not used on cpu: RuntimeError('no such instruction')"
    ]


@pytest.mark.gpu
def test_a_gpu_runs_all_fused_kernels() -> None:
    from models import fused

    gpu = torch.device("cuda")
    with torch.inference_mode():
        assert fused.prove_normal(gpu)
        assert fused.prove_group_norm(gpu)
