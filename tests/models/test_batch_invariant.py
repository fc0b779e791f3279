"""Batch-invariant layers: their rows do not depend on the batch, and equal those of torch's layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import batch_invariant, memory

LAYERS = {
    "linear": (batch_invariant.Linear(64, 30), (64,)),
    "conv": (batch_invariant.Conv2d(3, 8, 3, padding=1), (3, 14, 14)),
    "strided": (batch_invariant.Conv2d(1, 16, 4, stride=2, padding=1), (1, 28, 28)),
    "single_channel": (batch_invariant.SingleChannelConv(24), (24, 28, 28)),
}
PREPACKED = {
    "conv": (batch_invariant.Conv2d(32, 64, 3, padding=1), (32, 14, 14)),
    "strided": (batch_invariant.Conv2d(1, 16, 4, stride=2, padding=1, bias=False), (1, 28, 28)),
    "one_by_one": (batch_invariant.Conv2d(32, 96, 1), (32, 7, 7)),
    "transposed": (nn.ConvTranspose2d(48, 24, 4, stride=2, padding=1), (48, 14, 14)),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """A layer in its inference form, and 16 rows of input."""
    layer, shape = LAYERS[request.param]
    layer.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return layer, torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_rows_have_the_same_bits_in_a_batch_of_any_size(case: tuple[nn.Module, torch.Tensor], size: int) -> None:
    layer, x = case
    assert torch.equal(layer(x[:size]), layer(x)[:size])


def test_inference_and_training_give_the_same_output(case: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = case
    inference, training = layer(x), layer.train()(x)
    assert inference.shape == training.shape
    assert torch.allclose(inference, training, atol=1e-5)


def test_a_single_channel_convolution_equals_conv2d_at_the_edges() -> None:
    layer = batch_invariant.SingleChannelConv(2).eval().requires_grad_(False)
    x = torch.arange(2 * 5 * 4, dtype=torch.float32).reshape(1, 2, 5, 4)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-5)


def test_memory_tuning_has_no_side_effects() -> None:
    memory.retain_freed_memory()
    assert torch.ones(2**20).sum() == 2**20


@pytest.mark.parametrize("name", PREPACKED)
def test_a_prepacked_convolution_is_equal_and_batch_invariant(name: str) -> None:
    layer, shape = PREPACKED[name]
    net = nn.Sequential(nn.Sequential(layer, nn.LeakyReLU(0.2))).eval().requires_grad_(False)
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    batch_invariant.prepack_weights(net)
    assert not any(isinstance(module, type(layer)) for module in net.modules())
    assert torch.allclose(net(x), expected, atol=1e-5)
    for size in (1, 2, 3, 5, 8):
        assert torch.equal(net(x[:size]), net(x)[:size])


@pytest.mark.parametrize("size", [1, 16])
def test_prepacked_weights_are_not_reordered_again(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(batch_invariant.Conv2d(64, 64, 3, padding=1)).eval().requires_grad_(False)
    batch_invariant.prepack_weights(net)
    x = torch.randn(size, 64, 7, 7)
    with torch.inference_mode():
        net(x)
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            net(x)
    log = capfd.readouterr().out
    assert "primitive,exec,cpu,convolution" in log
    assert not any("reorder" in line and "64x64x3x3" in line for line in log.splitlines())
