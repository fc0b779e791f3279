"""Metrics against closed forms and brute force."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import metrics


def cloud(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_a_set_to_itself_is_0() -> None:
    x = cloud(500, 8, 0)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_shifted_set_is_the_squared_shift() -> None:
    x, shift = cloud(500, 8, 0).double(), torch.arange(8).double()
    assert metrics.frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-6)


def test_frechet_distance_of_a_scaled_set_has_a_closed_form() -> None:
    # Between N(0, C) and N(0, s^2 C) the closed form is (1 - s)^2 tr C.
    x = cloud(500, 8, 0).double()
    x = x - x.mean(0)
    expected = (1 - 3) ** 2 * float(torch.cov(x.T).trace())
    assert metrics.frechet_distance(x, 3 * x) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_symmetric() -> None:
    # The covariances do not commute, so that the order of the factors under the root could matter.
    x, y = cloud(400, 6, 0) @ cloud(6, 6, 1), cloud(300, 6, 2) @ cloud(6, 6, 3) + 1
    assert metrics.frechet_distance(x, y) == pytest.approx(metrics.frechet_distance(y, x), rel=1e-6)


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    x, y = (cloud(400, 6, 0) @ cloud(6, 6, 1)).double(), (cloud(300, 6, 2) @ cloud(6, 6, 3) + 1).double()
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    shift = float((x.mean(0) - y.mean(0)).square().sum())
    expected = shift + float((a + b - 2 * sqrtm(a @ b).real).trace())
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_allows_constant_features() -> None:
    x, y = cloud(300, 4, 0), cloud(300, 4, 1)
    constant = torch.zeros(300, 3)
    distance = metrics.frechet_distance(torch.cat((x, constant), 1), torch.cat((y, constant), 1))
    assert distance == pytest.approx(metrics.frechet_distance(x, y), rel=1e-6)


def test_kernel_distance_agrees_with_the_sum_over_pairs() -> None:
    x, y = cloud(12, 3, 0).double(), cloud(12, 3, 1).double() + 0.5

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within_x = sum(kernel(a, b) for a, b in itertools.permutations(x, 2)) / (12 * 11)
    within_y = sum(kernel(a, b) for a, b in itertools.permutations(y, 2)) / (12 * 11)
    between = sum(kernel(a, b) for a, b in itertools.product(x, y)) / (12 * 12)
    expected = within_x + within_y - 2 * between
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    # For two sets from one distribution the mean is 0 within its error; with the diagonal terms it would not be.
    values = torch.tensor([metrics.kernel_distance(cloud(40, 5, 2 * i), cloud(40, 5, 2 * i + 1)) for i in range(60)])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 4 * error


def test_kernel_distance_does_not_depend_on_the_order_of_a_set() -> None:
    x = cloud(4000, 5, 0)
    ordered = x[x[:, 0].argsort()]
    assert abs(metrics.kernel_distance(ordered, cloud(4000, 5, 1))) < 0.02


def test_kernel_distance_of_a_shifted_set_is_positive() -> None:
    assert metrics.kernel_distance(cloud(3000, 5, 0), cloud(3000, 5, 1) + 1) > 0.5


def brute_force(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage pair by pair, as their papers define them."""
    n, m = len(x), len(y)

    def gap(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum().sqrt())

    ball_x = [sorted(gap(x[i], x[j]) for j in range(n) if j != i)[k - 1] for i in range(n)]
    ball_y = [sorted(gap(y[i], y[j]) for j in range(m) if j != i)[k - 1] for i in range(m)]
    gaps = [[gap(x[i], y[j]) for j in range(m)] for i in range(n)]
    precision = sum(any(gaps[i][j] <= ball_x[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(gaps[i][j] <= ball_y[j] for j in range(m)) for i in range(n)) / n
    density = sum(gaps[i][j] <= ball_x[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(any(gaps[i][j] <= ball_x[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 3), (40, 25, 5), (25, 40, 1)])
def test_overlap_agrees_with_brute_force(n: int, m: int, k: int) -> None:
    x, y = cloud(n, 2, n), cloud(m, 2, 100 + m) + 0.7
    overlap = metrics.coverage(x, y, k)
    assert (overlap.precision, overlap.recall, overlap.density, overlap.coverage) == pytest.approx(brute_force(x, y, k))


def test_overlap_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(200, 4, 0), cloud(150, 4, 1) + 0.3
    whole = metrics.coverage(x, y)
    monkeypatch.setattr(metrics, "BLOCK", 37)
    assert metrics.coverage(x, y) == whole


def test_a_collapsed_set_has_precision_but_no_recall_and_no_coverage() -> None:
    x = cloud(500, 4, 0)
    y = x[:1] + 1e-3 * cloud(500, 4, 1)
    overlap = metrics.coverage(x, y)
    assert overlap.precision == 1
    assert overlap.recall < 0.05
    assert overlap.coverage < 0.05


def test_distant_sets_do_not_overlap() -> None:
    overlap = metrics.coverage(cloud(100, 4, 0), cloud(100, 4, 1) + 100)
    assert (overlap.precision, overlap.recall, overlap.density, overlap.coverage) == (0, 0, 0, 0)


def test_density_and_coverage_of_one_distribution_have_their_expectations() -> None:
    # Naeem et al. 2020, section 3.2: E[density] = 1 and E[coverage] = 1 - (1/2)^k for two sets of equal size.
    overlaps = [metrics.coverage(cloud(1000, 2, 2 * i), cloud(1000, 2, 2 * i + 1), k=3) for i in range(8)]
    assert sum(overlap.density for overlap in overlaps) / 8 == pytest.approx(1, abs=0.05)
    assert sum(overlap.coverage for overlap in overlaps) / 8 == pytest.approx(1 - 0.5**3, abs=0.01)


def test_nearest_is_the_minimal_distance() -> None:
    x = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    y = torch.tensor([[3.0, 4.0], [10.0, 2.0], [0.0, 0.0]])
    distances, index = metrics.nearest(x, y)
    assert distances.tolist() == [5, 2, 0]
    assert index.tolist() == [0, 1, 0]


def test_entropy_of_a_uniform_histogram_is_the_logarithm_of_its_size() -> None:
    assert metrics.entropy(torch.arange(10).repeat(7), 10) == pytest.approx(math.log(10))
    assert metrics.entropy(torch.full((50,), 3), 10) == 0


def test_every_copy_after_the_first_is_a_duplicate() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 28, 28)
    assert metrics.duplicates(images) == 0
    assert metrics.duplicates(torch.cat((images, images[:1], images[:1]))) == pytest.approx(2 / 6)


def test_the_interval_covers_the_mean_in_95_percent_of_experiments() -> None:
    experiments = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = sum(abs(float(row.mean())) <= metrics.interval(row.tolist()) for row in experiments)
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_the_chance_of_copies_is_exceeded_once_in_a_thousand_times() -> None:
    for tests in (30, 554, 1000):
        generator = torch.Generator().manual_seed(tests)
        distances = torch.rand(4000, tests, generator=generator)
        # The share of draws below a threshold is the threshold, as draws are uniform, too.
        share = distances.kthvalue(metrics.nearest_percent(tests), dim=1).values
        assert int((share > metrics.chance_of_copies(tests)).sum()) <= 12
    assert metrics.chance_of_copies(554) < 0.05 < metrics.chance_of_copies(30)


def test_sharpness_is_0_of_one_colour_and_lower_after_blurring() -> None:
    flat = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    assert metrics.sharpness(flat) == 0
    edges = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    edges[:, :, :, 8:] = 200
    blurred = torch.nn.functional.avg_pool2d(edges.float(), 3, 1, 1).to(torch.uint8)
    assert 0 < metrics.sharpness(blurred) < metrics.sharpness(edges)


@pytest.mark.slow
def test_inception_gives_the_features_of_a_network_from_a_file_for_grey_and_colour(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict[str, Tensor]) -> None:
            """Keep the initial weights."""

    torch.manual_seed(0)
    torch.save({}, tmp_path / "nothing.pth")
    net = Untrained("net", ["2048"], str(tmp_path / "nothing.pth"))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    grey = (128 + 40 * cloud(6, 784, 0)).clamp(0, 255).to(torch.uint8).view(6, 1, 28, 28)
    colour = grey.expand(-1, 3, -1, -1)
    with pytest.raises(RuntimeError, match="Missing key"):
        metrics.Inception(tmp_path / "nothing.pth")
    inception = metrics.Inception(tmp_path / "net.pth")
    torch.testing.assert_close(inception.features(grey), net(colour)[0])
    torch.testing.assert_close(inception.features(colour), net(colour)[0])
    assert inception.features(grey).shape == (6, 2048)
