"""Fused kernels: in Triton's interpreter on a CPU, compiled for a GPU without one, and on a GPU if there is one."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from models import families, kernels, nets, noise, updates
from models.base import Rows

CPU = torch.device("cpu")


PROOFS = """
import torch
from models import fused, nets, noise, updates

cpu = torch.device("cpu")
proofs = fused.prove_normal, fused.prove_group_norm, fused.prove_guide, fused.prove_diffuse, fused.prove_flow
print(*(prove(cpu, 3) for prove in proofs))


def wrong(function, change):
    return lambda *arguments, **options: change(function(*arguments, **options))


noise.torch_normal = wrong(noise.torch_normal, lambda x: x * (1 + 2e-7))
nets.torch_group_norm = wrong(nets.torch_group_norm, lambda x: x + 1e-3)
for name in ("torch_guide", "torch_diffuse", "torch_flow"):
    setattr(updates, name, wrong(getattr(updates, name), lambda x: x + 1e-3))
print(*(prove(cpu, 1) for prove in proofs))
"""


def test_kernels_that_do_what_torch_does_pass_their_proofs_and_others_fail() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROOFS], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["True"] * 5 + ["False"] * 5, result.stderr


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
    guided = dict.fromkeys(("labelled", "unlabelled", "scale", "out"), "*fp32")
    stepped = dict.fromkeys(("state", "x_0", "eps", "coefficients", "out"), "*fp32")
    flowing = dict.fromkeys(("state", "predicted", "coefficients", "out"), "*fp32")
    size, stride, block = {"size": "i32"}, {"stride": "i32"}, {"BLOCK": fused.BLOCK}
    for kernel, arguments, constants in (
        (fused.normal_kernel, {**row, "out": "*fp32", **size}, {"BLOCK": fused.NOISE_BLOCK}),
        (fused.group_norm_kernel, {**pointers, **numbers}, options),
        (fused.guide_kernel, guided | size, block),
        (fused.diffuse_kernel, stepped | size | stride, {"NOISY": True, **block}),
        (fused.flow_kernel, flowing | size | stride, block),
    ):
        signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that give other results than torch, and tensors that are taken to be on a GPU."""
    monkeypatch.setitem(kernels.installed, noise.torch_normal, lambda seed, *_: torch.full((len(seed), 3), 7.0))
    monkeypatch.setitem(kernels.installed, nets.torch_group_norm, lambda x, *_, **__: torch.full_like(x, 8.0))
    for function in (updates.torch_guide, updates.torch_diffuse, updates.torch_flow):
        monkeypatch.setitem(kernels.installed, function, lambda x, *_: torch.full_like(x, 9.0))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


@pytest.mark.usefixtures("replaced")
def test_kernels_replace_operations_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row, norm, x = torch.zeros(2, dtype=torch.int64), nn.GroupNorm(8, 8), torch.rand(2, 8, 4, 4)
    scale, diffusion, flow = torch.tensor([1.0, 2.0]), torch.rand(2, 5), torch.rand(2, 4)

    def results() -> list[torch.Tensor]:
        return [
            noise.normal(row, row, row, (3,)),
            nets.group_norm(x, norm),
            updates.guide(x, 2 * x, scale),
            updates.diffuse(x, x[:, :4], diffusion, None),
            updates.flow(x, x[:, :4], flow),
        ]

    def are_those_of_torch(results: list[torch.Tensor]) -> bool:
        return all(torch.equal(*pair) for pair in zip(results, expected, strict=True))

    with torch.inference_mode():
        expected = [
            noise.torch_normal(row, row, row, (3,)),
            nn.functional.silu(norm(x)),
            updates.torch_guide(x, 2 * x, scale),
            updates.torch_diffuse(x, x[:, :4], diffusion, None),
            updates.torch_flow(x, x[:, :4], flow),
        ]
        assert [result.unique().tolist() for result in results()] == [[7.0], [8.0], [9.0], [9.0], [9.0]]
        with kernels.unused():
            assert are_those_of_torch(results())
        assert len(kernels.installed) == 5
        monkeypatch.setattr(torch.Tensor, "is_cuda", False)
        assert are_those_of_torch(results())


@pytest.mark.usefixtures("replaced")
def test_training_does_not_use_kernels_without_gradients() -> None:
    assert nets.group_norm(torch.rand(2, 8, 4, 4), nn.GroupNorm(8, 8)).requires_grad


@pytest.mark.parametrize("family", ["ddpm", "flow"])
def test_a_step_with_guidance_ends_in_two_kernels(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    called = []

    def replacing(function: kernels.Kernel) -> kernels.Kernel:
        def call(*arguments: torch.Tensor) -> torch.Tensor:
            called.append(function.__name__)
            return function(*arguments)

        return call

    for function in (updates.torch_guide, updates.torch_diffuse, updates.torch_flow):
        monkeypatch.setitem(kernels.installed, function, replacing(function))
    kind = families.get(family)
    model = kind(kind.Config(), (1, 8, 8), 3).eval()
    row, label = torch.arange(2), torch.eye(3)[:2]
    with torch.inference_mode():
        schedule = model.schedule(4)[:2]
        state = model.initial_state(row, row, label, schedule)
        rows = Rows(state, label, schedule, torch.tensor([1.0, 2.0]), row, row, row + 1, noisy=False)
        expected = model.step(rows)
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        assert torch.equal(model.step(rows), expected)
    assert called == ["torch_guide", {"ddpm": "torch_diffuse", "flow": "torch_flow"}[family]]


def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="there is no GPU, nor Triton")
    from models import fused

    def fails(_: torch.device) -> bool:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "installed", {})
    monkeypatch.setattr(fused, "prove_normal", fails)
    for name in ("group_norm", "guide", "diffuse"):
        monkeypatch.setattr(fused, f"prove_{name}", lambda _: True)
    monkeypatch.setattr(fused, "prove_flow", lambda _: False)
    fused.install(CPU)
    assert set(kernels.installed.values()) == {fused.group_norm, fused.guide, fused.diffuse}
    assert [record.message for record in caplog.records] == [
        "the fused kernel for normal is not used on cpu: RuntimeError('no such instruction')",
        "the fused kernel for flow is not used on cpu: it gives other numbers",
    ]


@pytest.mark.gpu
def test_a_gpu_runs_all_fused_kernels() -> None:
    from models import fused

    gpu = torch.device("cuda")
    with torch.inference_mode():
        proofs = fused.prove_normal, fused.prove_group_norm, fused.prove_guide, fused.prove_diffuse, fused.prove_flow
        assert all(prove(gpu) for prove in proofs)
