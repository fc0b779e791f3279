"""Nets as they are served."""

import torch

from models.nets import UNet, fold_norms


@torch.inference_mode()
def test_a_folded_unet_is_the_same_net() -> None:
    source = torch.Generator().manual_seed(0)
    net = UNet(8, classes=10).eval()
    for parameter in net.parameters():  # some of them are zero before training, and hide what is behind them
        parameter.normal_(std=0.2, generator=source)
    x, time = torch.randn(5, 1, 28, 28, generator=source), torch.rand(5, generator=source)
    label = torch.eye(10)[:5]
    before = net(x, time, label)
    fold_norms(net)
    torch.testing.assert_close(net(x, time, label), before, rtol=1e-4, atol=1e-4)
    assert before.std() > 0.1
    assert not torch.allclose(net(x, time, label.flip(1)), before, atol=1e-2)
