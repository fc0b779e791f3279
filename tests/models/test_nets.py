"""The nets: the rule that fits them to a size, and their inference form."""

import pytest
import torch

from models import families
from models.batch_invariant import SingleChannelConv
from models.denoisers import UNet, patch_side
from models.families.flow import FlowConfig
from models.nets import Decoder, Encoder, channels, check_shape, fold_norms, halvings
from tests.conftest import SMALL


@pytest.mark.parametrize(
    ("size", "count", "patch"),
    [
        ((8, 8), 1, 1),
        ((12, 100), 1, 1),
        ((16, 16), 1, 2),
        ((28, 28), 2, 2),
        ((32, 32), 2, 2),
        ((48, 64), 2, 2),
        ((64, 64), 3, 2),
        ((100, 100), 2, 2),
        ((128, 128), 4, 4),
    ],
)
def test_halvings_and_patches_follow_from_the_size(size: tuple[int, int], count: int, patch: int) -> None:
    assert halvings(*size) == count
    assert patch_side(*size) == patch


def test_channels_double_up_to_eight_times() -> None:
    assert [channels(24, k) for k in range(5)] == [24, 48, 96, 192, 192]


@pytest.mark.parametrize("shape", [(2, 28, 28), (3, 30, 28), (1, 4, 4), (3, 132, 128), (3, 32), (1, 28, 28, 1)])
def test_shapes_that_no_net_takes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4 from 8 to 128"):
        check_shape(shape)
    with pytest.raises(ValueError, match="multiples of 4 from 8 to 128"):
        families.get("ae")(families.get("ae").Config(width=8), shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 48, 64), (1, 8, 8), (1, 12, 100), (3, 128, 128)])
def test_nets_take_images_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    assert Encoder(shape, 5, 8)(x).shape == (2, 5)
    assert Decoder(shape, 5, 8)(torch.randn(2, 5)).shape == x.shape
    assert UNet(shape, 8, 3)(x, torch.rand(2), torch.eye(3)[:2]).shape == x.shape
    assert isinstance(Decoder(shape, 5, 8).body[-1], SingleChannelConv) == (shape[0] == 1)


def test_levels_and_patch_override_the_rule() -> None:
    flow = families.get("flow")
    nets = [flow(FlowConfig(width=8, levels=levels, patch=patch), (3, 32, 32)) for levels, patch in ((0, 0), (3, 1))]
    assert [net.unet.heights for net in nets] == [[16, 8], [32, 16, 8, 4]]  # type: ignore[union-attr]
    for levels, patch in ((5, 2), (-1, 1), (1, 3), (1, -2)):
        with pytest.raises(ValueError, match=r"cannot be halved|patch is"):
            flow(FlowConfig(width=8, levels=levels, patch=patch), (3, 32, 32))


@pytest.mark.parametrize("name", families.names())
def test_parameters_of_a_family_are_named_the_same_at_28x28_and_32x32(name: str) -> None:
    kind = families.get(name)
    config = kind.Config(**SMALL.get(name, {}))
    digits, pictures = (kind(config, shape).state_dict() for shape in ((1, 28, 28), (3, 32, 32)))
    heights = {".down_14.": ".down_16.", ".down_7.": ".down_8.", ".up_14.": ".up_16.", ".up_7.": ".up_8."}
    for before, after in heights.items():
        digits = {key.replace(before, after): value for key, value in digits.items()}
    assert list(digits) == list(pictures)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)])
def test_a_folded_unet_gives_the_same_output(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    net = UNet(shape, 8, classes=10).eval()
    for parameter in net.parameters():  # some are zero before training and would hide other layers
        parameter.normal_(std=0.2, generator=generator)
    x, time = torch.randn(5, *shape, generator=generator), torch.rand(5, generator=generator)
    label = torch.eye(10)[:5]
    expected = net(x, time, label)
    fold_norms(net)
    torch.testing.assert_close(net(x, time, label), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert not torch.allclose(net(x, time, label.flip(1)), expected, atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 48, 64)])
def test_a_folded_decoder_gives_the_same_output(shape: tuple[int, ...]) -> None:
    net = Decoder(shape, 5, 8)
    for _ in range(3):
        net(torch.randn(16, 5))  # running averages of the batch norms
    net.eval()
    code = torch.randn(4, 5)
    expected = net(code)
    fold_norms(net)
    torch.testing.assert_close(net(code), expected, rtol=1e-4, atol=1e-5)
