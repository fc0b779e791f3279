"""The auto-encoder and the density on its codes."""

import pytest
import torch

from models.families.ae import AE, AEConfig
from models.pixels import to_unit
from training import data


@pytest.fixture(scope="module")
def ae():
    """A small one, taught the digits that need no download for a moment."""
    torch.manual_seed(0)
    family = AE(AEConfig(width=8, latent=8))
    x = to_unit(data.load("digits").images)
    optimizer = torch.optim.Adam(family.parameters(), 3e-3)
    for i in range(150):
        loss = family.loss("self", x[i * 64 % 1400 :][:64], torch.zeros(64))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    family.for_sampling().fit(x, torch.zeros(len(x)))
    return family


def drawn(ae, prior, count=1000):
    index = torch.arange(count)
    return ae.initial_state(
        torch.zeros_like(index), index, torch.zeros(count, 0), ae.schedule(1, prior).expand(count, 1)
    )


def test_it_learns_to_give_back_what_it_is_shown(ae):
    x = to_unit(data.load("digits", split="test").images)
    back = ae.decode(ae.decoder(ae.encode(x, torch.zeros(len(x), 0))).tanh())
    mean = x.mean(0, keepdim=True)
    assert float((x - back).square().mean()) < 0.5 * float((x - mean).square().mean())


def test_fitted_codes_lie_where_the_codes_of_data_lie_and_standard_ones_do_not(ae):
    codes = ae.encode(to_unit(data.load("digits").images), torch.zeros(1497, 0))
    near = torch.cdist(codes, codes).kthvalue(6).values.mean()
    fitted, standard = (torch.cdist(drawn(ae, prior), codes).amin(1).mean() for prior in ("fitted", "standard"))
    assert float(fitted) < 1.5 * float(near)
    assert float(standard) > 2 * float(fitted)


def test_fitted_is_what_it_draws_from_unless_asked(ae):
    assert torch.equal(drawn(ae, None), drawn(ae, "fitted"))
    assert not torch.equal(drawn(ae, None), drawn(ae, "standard"))
