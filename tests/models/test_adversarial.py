"""The generator that the convolutional GANs share."""

import pytest
import torch

from models import families
from models.adversarial import ConvolutionalGAN, GroupedGAN
from tests.conftest import small

NAMES = [name for name in families.names() if issubclass(families.get(name), ConvolutionalGAN)]


@pytest.mark.parametrize("name", NAMES)
def test_z_is_shorter_for_sampling_than_for_training(name):
    family = small(name)
    index = torch.arange(500)
    z = family.initial_state(torch.zeros_like(index), index, family.one_hot(index % 10), torch.zeros(500, 0))
    assert family.config.truncation < 1
    assert z.std().item() == pytest.approx(family.config.truncation, rel=0.02)
    inputs = []
    family.generate = lambda z, _: inputs.append(z)
    family.generate_batch(family.one_hot(index % 10))
    assert inputs[0].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_served_generator_is_an_average_of_weights(name):
    assert families.get(name).recipe.ema > 0


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(families.get(name), GroupedGAN)])
def test_few_samples_lie_between_two_groups(name):
    family = small(name)
    index = torch.arange(2000)
    label = torch.zeros(2000, 0)
    inputs = []
    family.generator.forward = lambda code: inputs.append(code) or torch.zeros(len(code), 1, 28, 28)
    family.generate(family.initial_state(torch.zeros_like(index), index, label, label), label)
    choice = inputs[0][:, : family.config.groups] / family.config.groups**0.5
    assert torch.allclose(choice.sum(1), torch.ones(2000), atol=1e-5)
    assert (choice.max(1).values > 0.95).float().mean() > 0.85
    counts = choice.argmax(1).bincount(minlength=family.config.groups)
    assert (counts > 0.7 * 2000 / family.config.groups).all()


@pytest.fixture(params=["dcgan", "wgan_gp"])
def clustered(request):
    """A small GAN with four clusters, and its training images: 30, 60, 90 and 120 of four brightnesses."""
    torch.manual_seed(0)
    family = small(request.param, clusters=True, groups=4, latent=12)
    brightness = torch.tensor([-0.9, -0.3, 0.3, 0.9]).repeat_interleave(torch.tensor([30, 60, 90, 120]))
    x = brightness[:, None, None, None] + 0.01 * torch.randn(300, 1, 28, 28)
    family.prepare(x, torch.full((300,), -1))
    return family, x


def test_samples_choose_clusters_as_often_as_the_data(clustered):
    family, _ = clustered
    index = torch.arange(3000)
    label = torch.zeros(3000, 0)
    state = family.initial_state(torch.zeros_like(index), index, label, label)
    group, rest = state[:, :4], state[:, 4:]
    assert group.sum(1).unique().tolist() == [1.0]
    assert sorted(family.shares.tolist()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert torch.allclose(group.mean(0), family.shares, atol=0.03)
    assert rest.std().item() == pytest.approx(family.config.truncation, rel=0.02)
    assert rest.shape == (3000, 8)


def test_the_opponent_compares_images_of_the_same_cluster(clustered):
    family, x = clustered
    seen = []
    judge = family.judge
    family.judge = lambda opponent, part, group: seen.append((part, group)) or judge(opponent, part, group)
    chosen = []
    generate = family.generate
    family.generate = lambda z, label: chosen.append(z[:, :4]) or generate(z, label)
    batch = x[::30]
    family.loss(family.players[0], batch, torch.full((10,), -1))
    own = family.clusters.assign(batch)
    assert torch.equal(chosen[0].argmax(1), own), "G draws an image for each cluster of the batch"
    assert len(seen) > 2
    assert all(torch.equal(group.argmax(1), own) for _, group in seen)


def test_clusters_are_for_training_and_their_shares_for_sampling(clustered):
    family, _ = clustered
    assert "clusters.centres" in family.state_dict()
    assert [name for name in family.for_sampling().state_dict() if not name.startswith("generator.")] == ["shares"]
