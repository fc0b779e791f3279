"""The losses of the auxiliary classifier and of the source."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.families.acgan import ACGAN, ACGANConfig
from tests.conftest import assert_weights_reach


class Fixed(nn.Module):
    """Gives the same outputs for every image, with a gradient of zero."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.fixture
def acgan():
    torch.manual_seed(0)
    return ACGAN(ACGANConfig(generator_width=8, discriminator_width=8, classifier_weight=1.0))


def test_source_and_class_have_separate_heads_and_the_loss_takes_logits(acgan):
    outputs = torch.tensor([[0.7, *torch.linspace(-3, 3, 10).tolist()]])
    acgan.discriminator = Fixed(outputs)
    x, label = torch.randn(3, 1, 28, 28), torch.tensor([2, 2, 2])
    terms = acgan.loss("discriminator", x, label)
    expected = F.cross_entropy(outputs[:, 1:], torch.tensor([2])).item()
    assert terms["classifier"].item() == pytest.approx(2 * expected, rel=1e-5)
    # This D gives real and generated images the same logit, so the margin is 0.
    assert terms["source"].item() == pytest.approx(math.log(2), rel=1e-5)
    terms = acgan.loss("generator", x, label)
    assert terms["loss"].item() == pytest.approx(math.log(2) + expected, rel=1e-5)


def test_the_loss_of_the_discriminator_is_the_sum_of_source_class_and_both_penalties():
    torch.manual_seed(0)
    family = ACGAN(ACGANConfig(generator_width=8, discriminator_width=8, classifier_weight=0.3, gamma=0.5))
    terms = family.loss("discriminator", torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4]))
    expected = terms["source"] + 0.3 * terms["classifier"] + 0.25 * (terms["r1"] + terms["r2"])
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert min(terms["r1"].item(), terms["r2"].item()) > 0


def test_the_players_optimise_the_margin_in_opposite_directions(acgan):
    x, label = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4])
    torch.manual_seed(1)
    d = acgan.loss("discriminator", x, label)
    torch.manual_seed(1)
    g = acgan.loss("generator", x, label)
    # softplus(m) - softplus(-m) = m.
    assert (g["source"] - d["source"]).item() == pytest.approx(d["margin"].item(), abs=1e-4)


def test_images_without_a_label_train_only_the_source(acgan):
    acgan.discriminator = Fixed(torch.zeros(1, 11))
    known = acgan.loss("discriminator", torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 3, 4]))["classifier"]
    unknown = acgan.loss("discriminator", torch.randn(4, 1, 28, 28), torch.full((4,), -1))["classifier"]
    assert unknown.item() == pytest.approx(known.item() / 2)


def test_data_without_labels_trains_only_the_source():
    family = ACGAN(ACGANConfig(generator_width=8, discriminator_width=8), classes=0)
    for player in family.players:
        terms = family.loss(player, torch.randn(4, 1, 28, 28), torch.full((4,), -1))
        assert terms["classifier"].item() == 0
        assert terms["loss"].isfinite()


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "acgan", mnist_cnn_fd=0.75, precision=0.8, recall=0.5, coverage=0.65, accuracy=0.985, worst_digit=0.96
    )
