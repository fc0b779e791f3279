"""The nets in their inference form."""

import torch

from models.nets import UNet, fold_norms


@torch.inference_mode()
def test_a_folded_unet_gives_the_same_output() -> None:
    generator = torch.Generator().manual_seed(0)
    net = UNet(8, classes=10).eval()
    for parameter in net.parameters():  # some are zero before training and would hide other layers
        parameter.normal_(std=0.2, generator=generator)
    x, time = torch.randn(5, 1, 28, 28, generator=generator), torch.rand(5, generator=generator)
    label = torch.eye(10)[:5]
    expected = net(x, time, label)
    fold_norms(net)
    torch.testing.assert_close(net(x, time, label), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert not torch.allclose(net(x, time, label.flip(1)), expected, atol=1e-2)
