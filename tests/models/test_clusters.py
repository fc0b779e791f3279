"""Clusters of images without labels."""

import pytest
import torch
from torch import Tensor

from models.clusters import Clusters


def blobs(count: int, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Images [4 count, 1, 28, 28] with one bright quarter, and the numbers of their quarters [4 count]."""
    generator = torch.Generator().manual_seed(1)
    quarter = torch.arange(4).repeat(count)
    x = -torch.ones(len(quarter), 1, 28, 28)
    for k, image in zip(quarter.tolist(), x, strict=True):
        image[:, 14 * (k // 2) : 14 * (k // 2 + 1), 14 * (k % 2) : 14 * (k % 2 + 1)] = 1.0
    return x + spread * torch.randn(x.shape, generator=generator), quarter


def test_clusters_are_what_looks_alike() -> None:
    x, quarter = blobs(50)
    x, quarter = x[:-30], quarter[:-30]
    clusters = Clusters(4, (1, 28, 28))
    shares = clusters.fit(x)
    own = clusters.assign(x)
    names = [own[quarter == k].unique() for k in range(4)]
    assert sorted(name.item() for name in names) == [0, 1, 2, 3], "a cluster for each quarter"
    assert torch.allclose(shares[torch.cat(names)], quarter.bincount() / len(quarter))
    assert torch.equal(clusters.assign(x[:1]), own[:1]), "an image's cluster does not depend on other images"


def test_the_same_images_give_the_same_clusters() -> None:
    x, _ = blobs(20, spread=1.0)
    one, other = Clusters(7, (1, 28, 28)), Clusters(7, (1, 28, 28))
    one.fit(x)
    torch.rand(3)
    other.fit(x)
    assert torch.equal(one.centres, other.centres)


def test_copies_of_few_images_leave_clusters_empty() -> None:
    x = torch.eye(3).repeat(5, 1)
    shares = Clusters(5, (3,)).fit(x)
    assert shares.count_nonzero() == 3
    assert shares.sum().item() == pytest.approx(1)


def test_there_are_at_most_as_many_clusters_as_images() -> None:
    with pytest.raises(ValueError, match="3 images cannot have 5 clusters; set --groups to at most 3"):
        Clusters(5, (1, 28, 28)).fit(torch.zeros(3, 1, 28, 28))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (1, 8, 8), (2,)])
def test_data_of_any_shape_has_clusters(shape: tuple[int, ...]) -> None:
    x = torch.randn(30, *shape)
    clusters = Clusters(3, shape)
    clusters.fit(x)
    assert clusters.assign(x).unique().tolist() == [0, 1, 2]
    assert clusters.centres[0].numel() <= 3 * 28 * 28
