"""The class-supervised auto-encoder keeps the digits' codes apart."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models import store
from models.families.supervised_ae import SupervisedAE, SupervisedAEConfig
from models.pixels import to_unit
from training import data


@pytest.fixture(scope="module")
def taught():
    """A small one, taught the digits that need no download for a moment."""
    torch.manual_seed(0)
    found = data.load("digits")
    x, label = to_unit(found.images), found.labels
    family = SupervisedAE(SupervisedAEConfig(width=8, latent=8))
    optimizer = torch.optim.Adam(family.parameters(), 3e-3)
    for i in range(200):
        part = slice(i * 64 % 1400, i * 64 % 1400 + 64)
        loss = family.loss("self", x[part], label[part])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    family.for_sampling().fit(x, label)
    return family


def test_draws_of_a_digit_are_coded_as_that_digit(taught):
    index = torch.arange(1000)
    label = index % 10
    z = taught.initial_state(torch.zeros_like(index), index, taught.one_hot(label), torch.zeros(1000, 0))
    assert float((taught.head(z).argmax(1) == label).float().mean()) > 0.9


def test_images_of_unknown_label_teach_reconstruction_alone(taught):
    x = to_unit(data.load("digits").images[:8])
    terms = taught.loss("self", x, torch.full((8,), -1))
    assert terms["cross_entropy"].item() == 0
    assert terms["loss"].item() == terms["reconstruction"].item()


def test_the_committed_codes_are_told_apart_by_a_linear_probe(mnist_root):
    directory = store_root() / "supervised_ae"
    if not directory.exists():
        pytest.skip("no weights named supervised_ae yet")
    family, _ = store.load(directory)
    codes = {}
    for split in ("train", "test"):
        found = data.load("mnist", mnist_root, split)
        images, labels = found.images[:20_000], found.labels[:20_000]  # a third teaches a probe nearly as well
        with torch.inference_mode():
            parts = [family.encode(to_unit(part), torch.zeros(len(part), 10)) for part in images.split(2000)]
        codes[split] = (torch.cat(parts), labels)
    probe = LogisticRegression(max_iter=2000).fit(*(part.numpy() for part in codes["train"]))
    assert probe.score(*(part.numpy() for part in codes["test"])) >= 0.97


def store_root():
    from service.settings import ROOT

    return ROOT / "weights"
