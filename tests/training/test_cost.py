"""The cost of a run that is printed before it starts, and the cost of sampling."""

import dataclasses

import torch

from models.families.ddpm import DDPM, DDPMConfig
from models.families.gan import GAN, GANConfig
from tests.conftest import manifest_of, small
from training.cost import sampling_cost, training_macs
from training.data import make

DATA = make("two", torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",))


def test_the_cost_of_fully_connected_nets_is_three_times_that_of_their_products() -> None:
    family = small("gan")
    weights = [
        sum(p.numel() for p in net.parameters() if p.dim() == 2) for net in (family.generator, family.discriminator)
    ]
    generator, discriminator = weights
    # D's step: G once, D on two batches with gradients. G's step: both nets with gradients. The first layer of a net
    # needs no gradient of its input, and D none of its weights in G's step.
    full = (generator + 2 * 3 * discriminator) + (3 * generator + 2 * discriminator)
    assert 0.85 * full < training_macs(family, DATA) <= full


def test_counting_changes_neither_randomness_nor_weights() -> None:
    family = small("cgan")
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in family.state_dict().items()}
    assert training_macs(family, DATA) > 1e6
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in family.state_dict().items())


def test_closed_form_estimation_has_no_iterations() -> None:
    assert training_macs(small("pca"), DATA) == 0


def test_the_cost_of_sampling_counts_multiplications_and_images_per_second() -> None:
    family = GAN(GANConfig())
    cost = sampling_cost(family, manifest_of(family))
    assert cost["macs"] == 100 * 128 + 128 * 256 + 256 * 784
    assert cost["images_per_core_second"] > 0


def test_the_cost_of_sampling_grows_with_steps_and_guidance() -> None:
    family = DDPM(DDPMConfig(width=8)).for_sampling()
    manifest = manifest_of(family)
    macs = [
        sampling_cost(family, dataclasses.replace(manifest, defaults={"steps": steps, "guidance": guidance}))["macs"]
        for steps, guidance in ((1, 1.0), (3, 1.0), (3, 2.0))
    ]
    assert macs == [macs[0], 3 * macs[0], 6 * macs[0]]
