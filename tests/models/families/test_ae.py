"""The auto-encoder and the priors of its codes."""

import pytest
import torch

from models.families.ae import AE, AEConfig
from models.pixels import to_unit
from tests.conftest import assert_weights_reach
from training import data


@pytest.fixture(scope="module")
def ae():
    """A small auto-encoder, trained briefly on the digits that need no download."""
    torch.manual_seed(0)
    family = AE(AEConfig(width=8, latent=8))
    x = to_unit(data.load("digits", options=data.Options(size=(28, 28))).images)
    optimizer = torch.optim.Adam(family.parameters(), 3e-3)
    for i in range(80):
        loss = family.loss("self", x[i * 64 % 1400 :][:64], torch.zeros(64))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    family.for_sampling().fit(x, torch.zeros(len(x)))
    return family


def sampled_codes(ae, prior, count=1000):
    index = torch.arange(count)
    return ae.initial_state(
        torch.zeros_like(index), index, torch.zeros(count, 0), ae.schedule(1, prior).expand(count, 1)
    )


def test_it_learns_to_reconstruct_images(ae):
    x = to_unit(data.load("digits", split="test", options=data.Options(size=(28, 28))).images)
    reconstruction = ae.decode(ae.decoder(ae.encode(x, torch.zeros(len(x), 0))).tanh())
    mean = x.mean(0, keepdim=True)
    assert float((x - reconstruction).square().mean()) < 0.5 * float((x - mean).square().mean())


def test_only_samples_of_the_fitted_prior_are_close_to_the_codes_of_data(ae):
    codes = ae.encode(to_unit(data.load("digits", options=data.Options(size=(28, 28))).images), torch.zeros(1497, 0))
    neighbour = torch.cdist(codes, codes).kthvalue(6).values.mean()
    fitted, standard = (torch.cdist(sampled_codes(ae, prior), codes).amin(1).mean() for prior in ("fitted", "standard"))
    assert float(fitted) < 1.5 * float(neighbour)
    assert float(standard) > 2 * float(fitted)


def test_the_fitted_prior_is_the_default(ae):
    assert torch.equal(sampled_codes(ae, None), sampled_codes(ae, "fitted"))
    assert not torch.equal(sampled_codes(ae, None), sampled_codes(ae, "standard"))


def test_committed_weights_reach_their_goals():
    assert_weights_reach("ae", mnist_cnn_fd=0.75, precision=0.8, recall=0.7, coverage=0.8)
