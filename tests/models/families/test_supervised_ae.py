"""The class-supervised auto-encoder separates the codes of the digits."""

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models import store
from models.families.supervised_ae import SupervisedAE, SupervisedAEConfig
from models.pixels import to_unit
from tests.conftest import assert_weights_reach
from training import data


@pytest.fixture(scope="module")
def trained():
    """A small auto-encoder, trained briefly on the digits that need no download."""
    torch.manual_seed(0)
    dataset = data.load("digits", options=data.Options(size=(28, 28)))
    x, label = to_unit(dataset.images), dataset.labels
    family = SupervisedAE(SupervisedAEConfig(width=8, latent=8))
    optimizer = torch.optim.Adam(family.parameters(), 1e-2)
    for i in range(120):
        part = slice(i * 64 % 1400, i * 64 % 1400 + 64)
        loss = family.loss("self", x[part], label[part])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    family.for_sampling().fit(x, label)
    return family


def test_sampled_codes_of_a_digit_are_classified_as_that_digit(trained):
    index = torch.arange(1000)
    label = index % 10
    z = trained.initial_state(torch.zeros_like(index), index, trained.one_hot(label), torch.zeros(1000, 0))
    assert float((trained.head(z).argmax(1) == label).float().mean()) > 0.9


def test_images_without_a_label_train_only_the_reconstruction(trained):
    x = to_unit(data.load("digits", options=data.Options(size=(28, 28))).images[:8])
    terms = trained.loss("self", x, torch.full((8,), -1))
    assert terms["cross_entropy"].item() == 0
    assert terms["loss"].item() == terms["reconstruction"].item()


@pytest.mark.slow
def test_a_linear_probe_classifies_the_codes_of_the_committed_weights(mnist_root):
    directory = Path(__file__).parents[3] / "weights" / "supervised_ae"
    if not directory.exists():
        pytest.skip("no committed weights named supervised_ae")
    family, _ = store.load(directory)
    codes = {}
    for split in ("train", "test"):
        dataset = data.load("mnist", mnist_root, split)
        images, labels = dataset.images[:20_000], dataset.labels[:20_000]  # nearly the accuracy of all images
        with torch.inference_mode():
            parts = [family.encode(to_unit(part), torch.zeros(len(part), 10)) for part in images.split(2000)]
        codes[split] = (torch.cat(parts), labels)
    probe = LogisticRegression(max_iter=2000).fit(*(part.numpy() for part in codes["train"]))
    assert probe.score(*(part.numpy() for part in codes["test"])) >= 0.97


def test_committed_weights_reach_their_goals():
    assert_weights_reach(
        "supervised_ae", mnist_cnn_fd=0.75, precision=0.8, recall=0.7, coverage=0.8, accuracy=0.97, worst_digit=0.93
    )
