"""Nets prepared for a CPU: the bits of the nets that they were, for any size, label and batch."""

import copy

import pytest
import torch

from models import inference
from models.base import sample
from models.batch_invariant import prepack_weights
from models.denoisers import UNet, guided
from models.families.ddpm import DDPM, DDPMConfig
from models.inference import FlatUNet, prepare_for_cpu
from models.nets import fold_norms

SHAPES = {
    "grey": ((1, 28, 28), 10, {}),
    "three_levels": ((3, 32, 32), 3, {"levels": 3}),
    "patches_of_4": ((1, 16, 24), 0, {"patch": 4}),
    "no_patches": ((1, 12, 20), 2, {"levels": 2, "patch": 1}),
}


def net_of(name: str) -> UNet:
    """A net with random weights, folded for inference."""
    shape, classes, options = SHAPES[name]
    torch.manual_seed(0)
    net = UNet(shape, 16, classes, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    fold_norms(net)
    return net


def inputs(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, times and labels of `count` rows."""
    shape, classes, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(1)
    x, time = torch.randn(count, *shape, generator=generator), torch.rand(count, generator=generator)
    return x, time, torch.eye(max(classes, 1))[torch.arange(count) % max(classes, 1)][:, :classes]


@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_a_prepared_unet_gives_the_same_bits(name: str) -> None:
    net = net_of(name)
    prepared = copy.deepcopy(net)
    prepack_weights(net)
    prepare_for_cpu(prepared)
    for count in (1, 2, 3, 8, 40):
        rows = inputs(name, count)
        expected = net(*rows)
        for _ in range(2):  # with new modulations, and with those that it kept
            assert torch.equal(prepared(*rows), expected), count


@torch.inference_mode()
def test_modulations_do_not_depend_on_the_rows_they_were_computed_with() -> None:
    _, time, label = inputs("grey", 40)
    together, alone = FlatUNet(net_of("grey")), FlatUNet(net_of("grey"))
    expected = together.modulate(time, label)
    for i in reversed(range(40)):
        assert torch.equal(alone.modulate(time[i : i + 1], label[i : i + 1])[0], expected[i])
    assert torch.equal(alone.modulate(time, label), expected)


@torch.inference_mode()
def test_the_number_of_kept_modulations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MAX_MODULATIONS", 10)
    net = net_of("grey")
    prepare_for_cpu(net)
    flat = net.forward
    assert isinstance(flat, FlatUNet)
    x, _, label = inputs("grey", 4)
    for step in range(20):
        net(x, torch.full((4,), step / 20) + torch.arange(4) / 100, label)
        assert len(flat.kept) <= 10 + 4
        assert all(row.untyped_storage().nbytes() <= 4 * row.nbytes for row in flat.kept.values())


@torch.inference_mode()
def test_one_pass_over_twice_the_rows_gives_the_bits_of_two_passes() -> None:
    net = net_of("grey")
    prepare_for_cpu(net)
    x, time, label = inputs("grey", 6)
    guidance = torch.tensor([1.0, 1.6, 0.0, 1.0, 3.0, 1.6])
    calls: list[int] = []
    flat = net.forward
    vars(net)["forward"] = lambda *rows: (calls.append(len(rows[0])), flat(*rows))[1]
    two = guided(net, x, time, label, guidance)
    one = guided(net, x, time, label, guidance, joint_rows=6)
    assert torch.equal(one, two)
    assert calls == [6, 6, 12]
    guided(net, x, time, label, guidance, joint_rows=5)
    guided(net, x, time, label, torch.ones(6), joint_rows=6)
    assert calls[3:] == [6, 6, 6]


@torch.inference_mode()
def test_a_prepared_family_samples_the_same_images() -> None:
    torch.manual_seed(0)
    family = DDPM(DDPMConfig(width=16, timesteps=50))
    family.for_sampling()
    fold_norms(family)
    prepack_weights(family)
    seed, index, label = torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.eye(10)[:5]
    expected = sample(family, seed, index, label, steps=3, guidance=1.6)
    prepare_for_cpu(family)
    assert isinstance(family.unet.forward, FlatUNet)
    assert torch.equal(sample(family, seed, index, label, steps=3, guidance=1.6), expected)
